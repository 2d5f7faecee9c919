"""A run that belongs to storage: outages, kills, and other hosts do not change what it learns."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load

from pipeline.run import checkpoint, storage
from pipeline.run.eventlog import EVENTS
from pipeline.run.track import METRICS
from shards.files import whole_file
from shards.jsonl import parse, rows
from tests.faults.test_kill import alive
from tests.jobs import small
from tests.pipeline.data.test_stages import HERE
from tests.pipeline.servers import S3Server, s3_server
from tests.shards.raw import SAMPLE

pytestmark = pytest.mark.slow

SECRET = "planted-4f1d0c9a7b"
RUN = "bucket/runs/small"
ON_STORAGE = ("runs=s3://bucket/runs", f"data.stages=[{HERE}:gated]")


def lines(server: S3Server, name: str) -> list[dict]:
    return [row for line in server.read(f"{RUN}/{name}").split(b"\n") if (row := parse(line, {}))]


def read(objects: dict[str, bytes], name: str) -> list[dict]:
    return [row for line in objects[f"{RUN}/{name}"].split(b"\n") if (row := parse(line, {}))]


@dataclass
class Story:
    """What was done to the run, and what was observed.

    Attributes:
        folder: Holds the folders of both hosts.
        second: A second command while the run was trained.
        first: The events on storage when the first host was lost.
        outcome: The command on the second host.
        evaluated: `evaluate` by URL.
        predicted: `predict` by URL.
        objects: What the storage holds in the end.
    """

    folder: Path
    second: small.Outcome
    first: list[dict]
    outcome: small.Outcome
    evaluated: small.Outcome
    predicted: small.Outcome
    objects: dict[str, bytes]


def host(folder: Path, name: str) -> tuple[Path, dict[str, str]]:
    """Return the working folder of a host that shares no file with another, and its variables."""
    for part in ("work", "home", "cache"):
        (folder / name / part).mkdir(parents=True)
    variables = {"HOME": str(folder / name / "home"), "M2F_CACHE": str(folder / name / "cache")}
    return folder / name / "work", variables


def open_gate(gate: Path, step: int) -> None:
    """Let the run read the samples of the steps up to one."""
    with whole_file(gate) as file:
        file.write(str(step * small.GLOBAL_BATCH).encode())


@pytest.fixture(scope="module")
def story(tmp_path_factory, photographs) -> Iterator[Story]:
    """Stop the storage, kill the host, and resume on another one."""
    folder = tmp_path_factory.mktemp("stored")
    command = small.words(photographs, *ON_STORAGE)
    with pytest.MonkeyPatch.context() as patch, s3_server(patch, "bucket", SECRET) as server:
        gate = folder / "gate"
        patch.setenv("M2F_TEST_GATE", str(gate))
        open_gate(gate, 5)
        work, variables = host(folder, "a")
        driver = small.start(work, *command, start_new_session=False, **variables)

        def wait(condition: Callable[[], object]) -> None:
            until = time.monotonic() + small.TIMEOUT_S
            while not condition():
                assert driver.poll() is None, driver.communicate()
                assert time.monotonic() < until
                time.sleep(0.1)

        def here(name: str) -> list[dict]:
            (copy,) = (folder / "a" / "cache").glob("runs/*/small")
            return rows(copy / name)

        def saved(step: int) -> bool:
            names = storage.committed(relative(server))
            return step in [checkpoint.step_of(Path(name)) for name in names]

        wait(lambda: saved(4))
        patch.setenv("M2F_CACHE", str(folder / "other"))
        second = small.call(work, *command)

        server.stop()
        open_gate(gate, 9)
        wait(lambda: len(here(METRICS)) >= 8)  # training continues
        wait(lambda: any("cannot send records" in row.get("text", "") for row in here(EVENTS)))
        server.start()
        wait(
            lambda: any("can send records" in row.get("text", "") for row in lines(server, EVENTS))
        )
        wait(lambda: saved(8))
        first = lines(server, EVENTS)
        (start,) = [row for row in first if row["event"] == "start"]
        driver.kill()
        driver.communicate()
        until = time.monotonic() + small.TIMEOUT_S
        while any(map(alive, start["process_ids"])) and time.monotonic() < until:
            time.sleep(0.1)
        shutil.move(folder / "a", folder / "lost")

        open_gate(gate, small.STEPS + 1)
        work, variables = host(folder, "b")
        outcome = small.finish(small.start(work, *command, start_new_session=False, **variables))
        patch.setenv("M2F_CACHE", variables["M2F_CACHE"])
        url, images = f"s3://{RUN}", SAMPLE / "val2017"
        evaluated = small.call(work, "evaluate", url, "--json")
        predicted = small.call(work, "predict", url, str(images), "--out", "predictions")
        objects = {name: server.read(name) for name in server.names("bucket")}
        yield Story(folder, second, first, outcome, evaluated, predicted, objects)


def relative(server: S3Server) -> set[str]:
    return {name.removeprefix(f"{RUN}/") for name in server.names("bucket")}


def test_a_second_command_is_refused_while_the_owner_lives(story):
    assert story.second.code == 2
    line = small.complaint(story.second)
    assert line.startswith(f"error: s3://{RUN}: the run is being trained by another command (pid ")


def test_an_outage_of_the_storage_costs_no_step(story):
    texts = [row["text"] for row in story.first if row["event"] == "warning"]
    assert sum("cannot send records to s3://" in text for text in texts) == 1
    assert sum("can send records to s3://" in text for text in texts) == 1
    assert len([row for row in story.first if row["event"] == "start"]) == 1


def test_the_run_is_resumed_on_another_host_after_the_first_is_gone(story):
    assert story.outcome.code == 0, story.outcome.err
    assert "resuming from the checkpoint of step " in story.outcome.out
    assert f"done: s3://{RUN}/summary.json" in story.outcome.out
    first, second = [r for r in read(story.objects, EVENTS) if r["event"] == "start"]
    assert second["attempt"] == 2
    assert second["step"] > 0
    assert second["run_id"] == first["run_id"]
    assert second["checkpoint"].endswith("-a01")


def test_no_step_is_lost_or_doubled_and_the_weights_are_those_of_an_undisturbed_run(
    story, tmp_path_factory
):
    undisturbed, _ = small.trained(tmp_path_factory.getbasetemp())

    def numbers(found: list[dict]) -> list[dict]:
        kept = ("loss", "grad_norm", "lr", "position")
        trained = [row for row in found if "loss" in row]
        return [{k: v for k, v in row.items() if k.startswith(kept)} for row in trained]

    metrics = read(story.objects, METRICS)
    assert [row["step"] for row in metrics if "loss" in row] == list(range(1, small.STEPS + 1))
    assert numbers(metrics) == numbers(rows(undisturbed / METRICS))
    (name,) = [
        n
        for n in story.objects
        if f"step-{small.STEPS:09d}-a" in n and n.endswith(checkpoint.STATE)
    ]
    small.assert_same_state(load(story.objects[name]), small.last_state(undisturbed))


def test_storage_holds_the_whole_run_and_the_checkpoints_that_are_kept(story):
    names = {name.removeprefix(f"{RUN}/") for name in story.objects}
    steps = [checkpoint.step_of(Path(name)) for name in storage.committed(names)]
    assert steps == [16, 14, 12]
    assert len(storage.checkpoints(names)) == 3
    assert {"config.yaml", "environment.json", "summary.json", METRICS, EVENTS} <= names
    assert any(name.startswith("wandb/") and name.endswith(".wandb") for name in names)
    assert not names & {"lease.json", ".stop", ".lock"}
    assert all("step-" in name for name in names if name.startswith("evaluations/"))


def test_other_commands_take_the_url_and_write_there(story):
    assert story.evaluated.code == 0, story.evaluated.err
    assert "PQ" in json.loads(story.evaluated.out)
    assert f"{RUN}/pictures/step-{small.STEPS:09d}.png" in story.objects
    assert story.predicted.code == 0, story.predicted.err
    assert (story.folder / "b" / "work" / "predictions" / "panoptic.json").exists()


def test_a_secret_of_the_storage_is_written_nowhere(story):
    files = [path for path in story.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 50
    found = [path for path in files if SECRET.encode() in path.read_bytes()]
    found += [name for name, content in story.objects.items() if SECRET.encode() in content]
    assert found == []
    outcomes = (story.second, story.outcome, story.evaluated, story.predicted)
    assert not any(SECRET in outcome.out + outcome.err for outcome in outcomes)
