"""`drill`: a run with random kills is the undisturbed run, and the verdict notices what is not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.drill_verdict import Verdict
from pipeline.run import checkpoint, eventlog, events
from pipeline.run.checkpoint import COMMITTED, STATE, name_of
from pipeline.run.fault_events import Fault
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.track import METRICS
from shards import jsonl
from tests.jobs import small

STEPS, KILLED, RESUMED = 6, 4, 2


def write_run(folder: Path, attempts: list[range], kept: dict[int, int]) -> dict:
    """Write the records of a run, and return all rows of metrics that it ever had.

    Args:
        folder: The run folder.
        attempts: The steps of each start.
        kept: The attempt whose row is kept, by step.
    """
    state = folder / CHECKPOINTS / name_of(STEPS, len(attempts))
    state.mkdir(parents=True)
    save_file({"weight": torch.arange(4.0), "moment": torch.ones(2)}, state / STATE)
    (state / COMMITTED).touch()
    seen = {}
    for attempt, steps in enumerate(attempts, 1):
        start = events.Start(
            attempt=attempt, world_size=2, step=steps.start - 1, time=100 * attempt
        )
        eventlog.append(folder, start)
        for step in steps:
            seen[attempt, step] = {
                **{"step": step, "attempt": attempt, "time": 100 * attempt + step},
                **{"loss": 1 / step, "lr": 0.1},
            }
        if attempt < len(attempts):
            fault = Fault(fault="kill", kind="kill", rank=1, launch="", step=steps.stop, time=150)
            eventlog.append(folder, fault)
    with (folder / METRICS).open("w") as file:
        for step, attempt in kept.items():
            file.write(json.dumps(seen[attempt, step]) + "\n")
    return seen


@pytest.fixture
def runs(tmp_path):
    """Return an undisturbed run, and one that was killed in step 4 and resumed from step 2."""
    every = range(1, STEPS + 1)
    write_run(tmp_path / "undisturbed", [every], dict.fromkeys(every, 1))
    kept = {step: 1 if step <= RESUMED else 2 for step in every}
    attempts = [range(1, KILLED), range(RESUMED + 1, STEPS + 1)]
    return (
        tmp_path / "undisturbed",
        tmp_path / "disturbed",
        write_run(tmp_path / "disturbed", attempts, kept),
    )


def test_a_run_that_lost_nothing_is_good(runs, capsys):
    verdict = Verdict(*runs, planned=1)
    assert verdict.is_good
    (restart,) = verdict.restarts
    assert (restart.step, restart.repeated, restart.seconds) == (RESUMED, 1, 203 - 150)
    rows = {row["name"]: row["ours"] for row in verdict.rows()}
    assert rows["recovery.steps.repeated"] == 1
    assert (rows["recovery.steps.different"], rows["recovery.tensors.different"]) == (0, 0)
    verdict.show()
    assert "verdict: good" in capsys.readouterr().out


def change_row(file: Path, step: int, **values: float) -> None:
    rows = jsonl.rows(file)
    changed = [row | values if row["step"] == step else row for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in changed))


@pytest.mark.parametrize("step", [1, STEPS])
def test_another_loss_is_bad(runs, step):
    change_row(runs[1] / METRICS, step, loss=1 / step + 1e-9)
    verdict = Verdict(*runs, planned=1)
    assert (verdict.is_good, verdict.different_steps) == (False, 1)


def test_another_loss_of_a_step_that_was_repeated_is_bad(runs):
    runs[2][1, KILLED - 1]["loss"] += 1e-9
    assert not Verdict(*runs, planned=1).is_good


def test_a_step_that_is_missing_or_twice_in_the_metrics_is_bad(runs):
    file = runs[1] / METRICS
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    assert not Verdict(*runs, planned=1).is_good
    file.write_text("".join([*lines, lines[2]]))
    assert not Verdict(*runs, planned=1).is_good


def test_another_weight_is_bad(runs, capsys):
    (folder,) = checkpoint.committed(runs[1] / CHECKPOINTS)
    state = load_file(folder / STATE)
    state["weight"][3] += 3e-4
    save_file(state, folder / STATE)
    verdict = Verdict(*runs, planned=1)
    verdict.show()
    assert (verdict.is_good, verdict.different_tensors) == (False, 1)
    assert verdict.largest == pytest.approx(1e-4, rel=1e-3)
    assert "verdict: bad" in capsys.readouterr().out


def test_a_fault_that_did_not_strike_is_bad(runs):
    assert not Verdict(*runs, planned=2).is_good


def test_a_setting_that_drill_makes_is_refused_and_a_folder_of_others_stays(tmp_path):
    outcome = small.call(tmp_path, "drill", "tiny", "name=mine")
    assert outcome.code == 2
    assert small.complaint(outcome).startswith("error: name=mine: drill names its runs itself")
    (tmp_path / "drill").mkdir()
    (tmp_path / "drill" / "mine.txt").touch()
    assert small.call(tmp_path, "drill", "tiny").code == 2
    assert [path.name for path in (tmp_path / "drill").iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_run_that_is_killed_five_times_is_the_undisturbed_run(photographs, tmp_path):
    """Four kills are of workers, and one is of the command."""
    sets = [f"data.{name}={photographs / name}" for name in ("train", "val")]
    own = ("name=", "trainer.", "checkpoint.", "evaluation.", "tracking.")
    settings = [word for word in small.SETTINGS if not word.startswith(own)]
    words = ["drill", "tiny", *sets, *settings, "evaluation.short=64", "evaluation.long=96"]
    plan = small.call(tmp_path, *words, "trainer.steps=100", "--dry-run", "--json")
    assert len(json.loads(plan.out)["faults"]) == 5
    assert list(tmp_path.iterdir()) == []

    process = small.start(tmp_path, *words, "trainer.steps=100", "--json")
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    rows = {row["name"]: row["ours"] for row in json.loads(out)["rows"]}
    assert (rows["recovery.kills.workers"], rows["recovery.kills.command"]) == (4, 1)
    assert rows["recovery.steps"] == 100
    assert (rows["recovery.steps.different"], rows["recovery.tensors.different"]) == (0, 0)
    assert "verdict: good" in err
    assert {path.name for path in (tmp_path / "drill" / "runs").iterdir()} == {
        "undisturbed",
        "disturbed",
    }
