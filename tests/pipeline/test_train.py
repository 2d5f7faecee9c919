"""Whole runs of a tiny network on photographs: interruptions and divisions change no result."""

import dataclasses
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch

from model.criterion import Criterion, normalizers
from model.mask2former import Mask2Former, normalize
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import train_stream
from pipeline.run import checkpoint
from pipeline.run.cadence import Cadence
from pipeline.run.checkpoint import Progress, TrainerState
from pipeline.run.eventlog import EVENTS
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.track import METRICS
from pipeline.settings import BatchSettings, CheckpointSettings, RunSettings, TrainerSettings
from pipeline.step.draws import Draws
from pipeline.step.engine import ZeroSettings
from pipeline.train import Worker
from shards.jsonl import rows
from tests import distributed
from tests.pipeline.runs import (
    attempt,
    interrupted,
    on_a_full_disk,
    smallest,
    with_bad_gradients,
)

STEPS, GLOBAL = 4, 8


def runs_on_one_process(sets: Path, root: Path) -> dict[str, str | list[str]]:
    """Train on one process: undisturbed, disturbed in many ways, and divided differently."""
    plain = smallest(sets)
    longer = dataclasses.replace(plain, trainer=TrainerSettings(steps=30, log_every=1))
    outcomes = {
        "plain": attempt(plain, root / "plain"),
        "interrupted": interrupted(plain, root / "interrupted"),
        "full disk": on_a_full_disk(plain, root / "full disk", failing=2),
        "full at once": on_a_full_disk(plain, root / "full at once", failing=1),
        "one bad": with_bad_gradients(plain, root / "one bad", range(1, 2)),
        "all bad": with_bad_gradients(longer, root / "all bad", range(30)),
        "micro 8": attempt(
            dataclasses.replace(plain, batch=BatchSettings(GLOBAL, 8)), root / "micro 8"
        ),
        "stage 1": attempt(dataclasses.replace(plain, zero=ZeroSettings(1)), root / "stage 1"),
        "stage 3": interrupted(dataclasses.replace(plain, zero=ZeroSettings(3)), root / "stage 3"),
    }
    shutil.copytree(root / "plain", root / "again")
    outcomes["again"] = attempt(plain, root / "again")
    for name, change in {
        "other seed": {"seed": 4},
        "other samples": {"data": dataclasses.replace(plain.data, limit=7)},
    }.items():
        shutil.copytree(root / "plain", root / name)
        outcomes[name] = attempt(dataclasses.replace(plain, **change), root / name)
    shutil.copytree(root / "plain", root / "all damaged")
    for path in (root / "all damaged" / CHECKPOINTS).glob("*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    outcomes["all damaged"] = attempt(plain, root / "all damaged")
    return outcomes


def sharded_and_recomputing(plain: RunSettings) -> RunSettings:
    """Return settings of ZeRO-3, which gathers parameters again in recomputed layers."""
    model = dataclasses.replace(plain.model, checkpoint_activations=True)
    return dataclasses.replace(plain, model=model, zero=ZeroSettings(3))


def runs_on_two_processes(sets: Path, root: Path) -> dict[str, str]:
    """Train on two processes: a new run, and that of one process resumed at ZeRO stage 1."""
    plain = smallest(sets)
    return {
        "two": attempt(plain, root / "two"),
        "two, stage 3": attempt(sharded_and_recomputing(plain), root / "two, stage 3"),
        "moved": attempt(dataclasses.replace(plain, zero=ZeroSettings(1)), root / "moved"),
    }


@pytest.fixture(scope="module")
def runs(photographs, tmp_path_factory) -> tuple[Path, dict]:
    """Return the folder of all runs by name, and their outcomes."""
    root = tmp_path_factory.mktemp("runs")
    (outcomes,) = distributed.run(runs_on_one_process, 1, photographs, root, timeout_s=500)
    middle = Path(CHECKPOINTS) / checkpoint.name_of(2, 1)
    shutil.copytree(root / "plain" / middle, root / "moved" / middle)
    first, second = distributed.run(runs_on_two_processes, 2, photographs, root, timeout_s=500)
    assert first == second
    return root, outcomes | first


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(folder / METRICS) if "loss" in row}


def events(folder: Path, name: str) -> list[dict]:
    return [row for row in rows(folder / EVENTS) if row["event"] == name]


def end(folder: Path) -> tuple[dict[str, torch.Tensor], TrainerState]:
    newest = checkpoint.committed(folder / CHECKPOINTS)[0]
    assert checkpoint.damage(newest) is None
    return checkpoint.load(newest)


def assert_equal(one: Path, other: Path) -> None:
    """Check that both runs ended in the same state to the bit, with the same losses."""
    (state, trainer), (expected, _) = end(one), end(other)
    assert trainer.progress.step == STEPS
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []
    assert losses(one) == losses(other)


@pytest.mark.slow
def test_a_run_leaves_its_records(runs, photographs):
    root, outcomes = runs
    folder = root / "plain"
    assert outcomes["plain"] == "done"
    metrics = [row for row in rows(folder / METRICS) if "loss" in row]
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert [row["position"] for row in metrics] == [8, 16, 24, 32]
    assert [row["lr"] for row in metrics] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    for row in metrics:
        terms = [v for name, v in row.items() if name.startswith("loss_")]
        assert len(terms) == 9
        assert row["loss"] == pytest.approx(sum(terms), rel=1e-6)
        assert row["grad_norm"] > 0
        assert 0 <= row["data_wait_s"] < row["step_s"]
        assert row["images_per_s"] == pytest.approx(GLOBAL / row["interval_s"], rel=0.01)
    assert any(row["data_wait_s"] for row in metrics)  # for the first batch at least
    (start,) = events(folder, "start")
    assert start.items() >= {
        "attempt": 1, "world_size": 1, "zero_stage": 0, "step": 0, "position": 0,
        "checkpoint": None,
    }.items()  # fmt: skip
    assert [e["position"] for e in events(folder, "checkpoint")] == [0, 16, 32]
    assert events(folder, "finish")[0]["position"] == 32
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["step"], summary["position"]) == (4, 32)
    assert summary["checkpoint"] == "step-000000004-a01"
    assert 0 <= summary["PQ"] <= 100


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_whole_batch_in_plain_torch(runs, photographs):
    """The same network, eight crops, and draws without an engine and without micro-batches."""
    settings = smallest(photographs)
    store = Store(photographs / "train")
    stream = train_stream(settings.data, [store], settings.task, 3, 0, BatchSplit(GLOBAL, GLOBAL))
    batch = next(iter(stream))
    torch.manual_seed(3)
    model = Mask2Former(settings.model, len(store.manifest.taxonomy))
    draw = Draws(3, batch)
    terms = Criterion(settings.criterion)(
        model(normalize(batch.images), draw),
        batch.targets,
        draw,
        normalizers(batch.targets.categories, settings.model.queries, settings.criterion),
    )
    assert losses(runs[0] / "plain")[1] == pytest.approx(sum(terms.values()).item(), rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(runs):
    root, outcomes = runs
    folder = root / "interrupted"
    assert outcomes["interrupted"] == ["Killed: ", "done"]
    first, second = events(folder, "start")
    assert (first["position"], second["position"]) == (0, 16)
    assert (second["attempt"], second["checkpoint"]) == (2, "step-000000002-a01")
    assert_equal(folder, root / "plain")
    steps = [row["step"] for row in rows(folder / METRICS) if "loss" in row]
    assert steps == [1, 2, 3, 4]  # step 3 was written twice


@pytest.mark.slow
def test_a_sharded_run_resumes_too(runs):
    """Stage 3 sums in another order, so that its results are not equal to the bit."""
    root, outcomes = runs
    assert outcomes["stage 3"] == ["Killed: ", "done"]
    assert events(root / "stage 3", "start")[1]["position"] == 16
    assert losses(root / "stage 3") == pytest.approx(losses(root / "plain"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "two, stage 3", "micro 8", "stage 1"])
def test_how_the_work_is_divided_does_not_change_the_losses(runs, name):
    root, outcomes = runs
    assert outcomes[name] == "done"
    assert losses(root / name) == pytest.approx(losses(root / "plain"), rel=1e-4)
    assert len(losses(root / name)) == STEPS


@pytest.mark.slow
def test_two_processes_resume_the_run_of_one(runs):
    root, outcomes = runs
    assert outcomes["moved"] == "done"
    (start,) = events(root / "moved", "start")
    assert (start["world_size"], start["position"]) == (2, 16)
    assert len(set(start["process_ids"])) == 2
    expected = {step: loss for step, loss in losses(root / "plain").items() if step > 2}
    assert losses(root / "moved") == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(runs):
    root, outcomes = runs
    assert outcomes["again"] == "done"
    assert_equal(root / "again", root / "plain")
    assert [e["step"] for e in events(root / "again", "checkpoint")] == [0, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"), [("other seed", "seed: 3 -> 4"), ("other samples", "samples: [10] -> [7]")]
)
def test_another_order_of_data_is_refused(runs, name, change):
    root, outcomes = runs
    assert outcomes[name].startswith("UsageError: ")
    assert f"the data order has changed: {change}; " in outcomes[name]
    assert end(root / name)[1].progress.position == 32


@pytest.mark.slow
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(runs):
    root, outcomes = runs
    folder = root / "full disk"
    assert outcomes["full disk"] == "done"
    (failed,) = events(folder, "checkpoint_failed")
    assert failed["step"] == 2
    assert "No space left" in failed["error"]
    found = sorted(path.name for path in (folder / CHECKPOINTS).iterdir())
    assert found == ["step-000000000-a01", "step-000000004-a01"]
    assert_equal(folder, root / "plain")


@pytest.mark.slow
def test_damage_to_every_checkpoint_is_no_fresh_start(runs):
    root, outcomes = runs
    assert outcomes["all damaged"].startswith("UsageError: ")
    assert "every checkpoint is damaged" in outcomes["all damaged"]
    assert len(events(root / "all damaged", "damage")) == 3
    assert losses(root / "all damaged") == losses(root / "plain")


@pytest.mark.slow
def test_a_disk_that_holds_no_checkpoint_is_found_out_before_training(runs):
    root, outcomes = runs
    assert outcomes["full at once"].startswith("Failed: ")
    assert "the disk is full" in outcomes["full at once"]
    assert losses(root / "full at once") == {}


@pytest.mark.slow
def test_one_bad_gradient_is_skipped_and_recorded(runs):
    root, outcomes = runs
    folder = root / "one bad"
    assert outcomes["one bad"] == "done"
    (skipped,) = events(folder, "skipped")
    assert skipped["step"] == 2
    state, trainer = end(folder)
    assert trainer.progress == Progress(step=4, position=32, updates=3)
    assert all(tensor.isfinite().all() for tensor in state.values())
    (diagnosed,) = events(folder, "diagnosed")
    report = json.loads((folder / diagnosed["file"]).read_text())
    bad = [sample["position"] for sample in report["samples"] if sample["grad_norm"] == "nan"]
    assert bad == [s["position"] for s in report["all_samples"]] == list(range(8, 16))
    assert (folder / diagnosed["file"]).with_suffix(".png").stat().st_size > 0
    assert diagnosed["first"].startswith("gradient of ")
    second = rows(folder / METRICS)[1]
    assert (second["step"], second["grad_norm"]) == (2, None)
    before, after = losses(root / "plain"), losses(folder)
    assert [before[step] == after[step] for step in (1, 2, 3, 4)] == [True, True, False, False]


@pytest.mark.slow
def test_twenty_bad_gradients_in_a_row_stop_the_run(runs):
    root, outcomes = runs
    assert outcomes["all bad"].startswith("Failed: step 20: 20 gradients in a row")
    assert outcomes["all bad"].endswith("; lower optimizer.lr")
    assert [e["step"] for e in events(root / "all bad", "skipped")] == list(range(1, 21))
    start, stop = (
        checkpoint.load(root / "all bad" / CHECKPOINTS / checkpoint.name_of(step, 1))[0]
        for step in (14, 18)
    )
    assert all(torch.equal(start[name], stop[name]) for name in start)


def test_every_score_has_its_checkpoint(tmp_path):
    """The intervals of scores (3) and of checkpoints (4) do not divide each other."""
    plain = smallest(tmp_path)
    settings = dataclasses.replace(
        plain,
        trainer=TrainerSettings(steps=8, log_every=100),
        checkpoint=CheckpointSettings(every_steps=4),
        evaluation=dataclasses.replace(plain.evaluation, every_steps=3, at_start=True),
    )
    worker = object.__new__(Worker)
    worker.settings, worker.folder, worker.device = settings, tmp_path, torch.device("cpu")
    for part in ("guard", "watchdog", "split", "data", "parts", "train_step", "lr_multiplier"):
        setattr(worker, part, mock.MagicMock())
    worker.faults = worker.more = worker.rewind = None
    worker.guard.note.side_effect = lambda progress: progress
    worker.journal = journal = mock.MagicMock()
    journal.resume.return_value, journal.is_scored.return_value = Progress(), False
    worker.train_step.receive.side_effect = lambda _, due: mock.MagicMock(is_due=due)
    journal.is_due.side_effect = Cadence(settings.checkpoint).is_due
    worker.engine = mock.MagicMock(module=mock.create_autospec(Mask2Former, instance=True))
    with (
        mock.patch("pipeline.train.evaluate"),
        mock.patch.object(Worker, "_log"),
        mock.patch.object(Worker, "_batches"),
    ):
        assert worker.run()
    called = [
        (call[0], getattr(call.args[0], "step", call.args[0]))
        for call in journal.method_calls
        if call[0] in ("save", "scored")
    ]
    assert called == [
        *(("save", 0), ("scored", 0), ("save", 3), ("scored", 3), ("save", 4)),
        *(("save", 6), ("scored", 6), ("save", 8), ("scored", 8)),
    ]
    required = {call.args[0].step: call.kwargs["required"] for call in journal.save.call_args_list}
    assert required == {0: True, 3: False, 4: False, 6: False, 8: True}
