"""A run survives kill -9 of a worker and of the driver, and a flipped byte, with equal results."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.data.store import Store
from pipeline.run.eventlog import EVENTS
from pipeline.run.track import METRICS
from shards.jsonl import rows
from tests.damage import flip
from tests.jobs import small

pytestmark = pytest.mark.slow

DEATH_S = 30  # time limit for orphaned workers to exit


def wait_for(process: subprocess.Popen, run: Path, wanted) -> dict:
    """Return the first event that is `wanted`; fail if the process ends or time runs out before."""
    until = time.monotonic() + small.TIMEOUT_S
    while time.monotonic() < until:
        if found := [event for event in rows(run / EVENTS) if wanted(event)]:
            return found[0]
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("nothing happened in time")


def attempts(run: Path) -> list[dict]:
    return [event for event in rows(run / EVENTS) if event["event"] == "start"]


def saved_in(run: Path, attempt: int):
    """Return whether an event is a checkpoint of an attempt, past the one that it resumed from."""
    name, beyond = f"-a{attempt:02d}", 0
    if starts := [start for start in attempts(run) if start["attempt"] == attempt]:
        beyond = starts[0]["position"]
    return lambda e: e["event"] == "checkpoint" and name in e["name"] and e["position"] > beyond


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass
class Story:
    """What was done to the run, and what was observed."""

    run: Path
    killed_worker: int
    second_driver: small.Outcome
    orphans: list[int]
    damaged: Path
    outcome: small.Outcome


@pytest.fixture(scope="module")
def story(tmp_path_factory, photographs):
    """Kill a worker, try a second driver, kill the driver, flip a byte, and repeat the command."""
    folder = tmp_path_factory.mktemp("killed")
    run = folder / "runs" / small.NAME
    command = small.words(photographs)
    driver = small.start(folder, *command)

    wait_for(driver, run, saved_in(run, 1))
    worker = attempts(run)[0]["process_ids"][1]
    os.kill(worker, signal.SIGKILL)

    wait_for(driver, run, lambda event: event["event"] == "start" and event["attempt"] == 2)
    second = small.call(folder, *command)
    wait_for(driver, run, saved_in(run, 2))
    workers = attempts(run)[1]["process_ids"]
    driver.kill()
    driver.communicate()
    until = time.monotonic() + DEATH_S
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    orphans = [pid for pid in workers if alive(pid)]

    newest = max(path.parent for path in run.glob("checkpoints/*/COMMITTED"))
    state = newest / "state.safetensors"
    flip(state, state.stat().st_size // 2, 1)

    outcome = small.finish(small.start(folder, *command))
    return Story(run, worker, second, orphans, newest, outcome)


def test_a_killed_worker_is_replaced_by_the_same_command(story):
    first, second, *_ = attempts(story.run)
    assert story.killed_worker in first["process_ids"]
    assert second["launch"] == first["launch"]
    assert not set(second["process_ids"]) & set(first["process_ids"])
    assert second["attempt"] == 2
    assert second["position"] > 0
    assert second["checkpoint"].endswith("-a01")


def test_only_one_driver_trains_a_run(story):
    assert story.second_driver.code == 2
    assert "is being trained by another command" in small.complaint(story.second_driver)


def test_workers_do_not_outlive_their_driver(story):
    assert story.orphans == []


def test_after_a_killed_driver_the_same_command_resumes(story):
    assert story.outcome.code == 0, story.outcome.err
    assert f"{story.run}: resuming from the checkpoint of step " in story.outcome.out
    _, second, third = attempts(story.run)
    assert third["attempt"] == 3
    assert third["launch"] != second["launch"]
    assert third["position"] > 0


def test_a_damaged_checkpoint_is_skipped(story):
    damage = [event for event in rows(story.run / EVENTS) if event["event"] == "damage"]
    assert len(damage) == 1
    assert damage[0]["text"].startswith(f"checkpoint {story.damaged.name} is skipped: ")
    assert "state.safetensors" in damage[0]["text"]
    third = attempts(story.run)[2]
    assert third["checkpoint"] < story.damaged.name
    assert third["step"] == int(story.damaged.name.split("-")[1]) - small.EVERY
    assert story.damaged.name in story.outcome.out


def test_no_step_is_lost_or_doubled(story, uninterrupted):
    """Each step has the numbers of the uninterrupted run, to the bit."""
    measured = ("time", "interval_s", "step_s", "data_wait", "images_per_s", "hosts/", "attempt")

    def numbers(run):
        return [
            {name: value for name, value in row.items() if not name.startswith(measured)}
            for row in rows(run / METRICS)
        ]

    steps = [row["step"] for row in rows(story.run / METRICS) if "loss" in row]
    assert steps == list(range(1, small.STEPS + 1))
    assert numbers(story.run) == numbers(uninterrupted)


def test_the_end_is_bit_equal_to_an_undisturbed_one(story, uninterrupted):
    small.assert_same_state(small.last_state(story.run), small.last_state(uninterrupted))


def test_damaged_data_ends_the_run_and_is_named(tmp_path, photographs):
    """Three starts at one step are enough; the other restarts would fail too."""
    shards = Path(shutil.copytree(photographs, tmp_path / "shards"))
    store = Store(shards / "train")
    key, offset = store.index.key[0], int(store.index.offset[0])
    tar = shards / "train" / store.shard_of(0)
    flip(tar, offset + 5000, 1)
    changes = ["data.limit=1", "scaling.workers=1", "data.loader_workers=1"]

    process = small.start(tmp_path, *small.words(shards, *changes))
    outcome = small.finish(process)

    assert outcome.code == 3
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert line == (
        f"error: {tar}: sample {key} is damaged: its hash differs from the index, "
        "and 16 substitutes are damaged, too; build the set again"
    )
    assert "Traceback" not in outcome.err
    starts = attempts(tmp_path / "runs" / small.NAME)
    assert [start["step"] for start in starts] == [0, 0, 0]
