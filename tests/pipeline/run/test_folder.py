"""The run folder: the best and the last checkpoint, the rows that a restart drops, the summary."""

import json
from pathlib import Path

import pytest
import torch

from model.mask2former import Mask2Former
from pipeline.data.store import Store
from pipeline.run import checkpoint
from pipeline.run.folder import (
    CHECKPOINTS,
    best_step,
    choose_checkpoint,
    rewind,
    scores_path,
    summarize,
)
from pipeline.run.restore import load_model
from pipeline.run.track import METRICS
from pipeline.step import meter
from pipeline.step.meter import Meter
from shards.errors import UsageError
from shards.files import write_json
from shards.jsonl import append, rows
from tests.pipeline.runs import smallest, trainer_state

CPU = torch.device("cpu")


def scored(folder: Path, scores: dict[int, float | None]) -> None:
    for step, pq in scores.items():
        write_json(scores_path(folder, step), {"step": step, "PQ": pq, "AP": pq and 100 - pq})


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder / CHECKPOINTS / checkpoint.name_of(step, 1), {}, trainer_state(step))


def test_best_is_by_the_metric_of_the_task(tmp_path):
    assert best_step(tmp_path, "panoptic") is None
    scored(tmp_path, {0: None, 10: 40.0, 20: 60.0, 100: 50.0})
    assert best_step(tmp_path, "panoptic") == 20
    assert best_step(tmp_path, "instance") == 10
    assert best_step(tmp_path, "semantic") is None


@pytest.mark.parametrize(
    ("which", "step"), [(None, 20), ("best", 20), ("last", 100), ("10", 10), ("100", 100)]
)
def test_checkpoints_have_names(tmp_path, which, step):
    saved(tmp_path, 10, 20, 100)
    scored(tmp_path, {10: 40.0, 20: 60.0, 100: 50.0})
    assert checkpoint.step_of(choose_checkpoint(tmp_path, which, "panoptic")) == step


def test_without_a_score_or_its_checkpoint_best_is_the_last(tmp_path):
    saved(tmp_path, 10, 30)
    assert checkpoint.step_of(choose_checkpoint(tmp_path, "best", "panoptic")) == 30
    scored(tmp_path, {20: 60.0})
    with pytest.warns(UserWarning, match="of step 20, which has no checkpoint; step 30 is used"):
        assert checkpoint.step_of(choose_checkpoint(tmp_path, None, "panoptic")) == 30
    scored(tmp_path, {10: 50.0})
    with pytest.warns(UserWarning, match="step 10 is used"):
        summary = summarize(tmp_path, "panoptic")
    assert (summary["PQ"], summary["step"]) == (50.0, 10)
    assert summary["checkpoint"] == "step-000000010-a01"


@pytest.mark.parametrize(
    ("which", "text"),
    [("15", r"--checkpoint 15: .*\[10, 20\]"), ("newest", "give best, last, or a step")],
)
def test_an_unknown_checkpoint_is_a_usage_error(tmp_path, which, text):
    saved(tmp_path, 10, 20)
    with pytest.raises(UsageError, match=text):
        choose_checkpoint(tmp_path, which, "panoptic")
    with pytest.raises(UsageError, match="no checkpoint yet"):
        choose_checkpoint(tmp_path / "other", which, "panoptic")


def test_rewind_forgets_metrics_and_scores_past_the_step(tmp_path):
    for step in (5, 10, 15):
        append(tmp_path / METRICS, {"step": step})
    scored(tmp_path, {5: 1.0, 10: 2.0, 15: 3.0})
    rewind(tmp_path, 10)
    assert [row["step"] for row in rows(tmp_path / METRICS)] == [5, 10]
    assert not scores_path(tmp_path, 15).exists()
    assert best_step(tmp_path, "panoptic") == 10


def test_summary_is_of_the_best_step(tmp_path):
    saved(tmp_path, 10, 20)
    scored(tmp_path, {10: 70.0, 20: 60.0})
    for step in (10, 20):
        append(tmp_path / METRICS, {"step": step, "position": 8 * step, "interval_s": 1.25})
        append(tmp_path / METRICS, {"step": step, "val/PQ": 1.0})
    summary = summarize(tmp_path, "panoptic")
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary.items() >= {
        "PQ": 70.0, "AP": 30.0, "mIoU": None, "step": 10, "position": 160, "wall_s": 2.5,
        "checkpoint": "step-000000010-a01", "checkpoints": None, "pictures": [],
    }.items()  # fmt: skip


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"n": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "x.json", {"n": object()})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"n": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_a_model_comes_back_from_its_checkpoint(tmp_path, photographs):
    settings = smallest(photographs)
    taxonomy = Store(photographs / "train").manifest.taxonomy
    model = Mask2Former(settings.model, len(taxonomy))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {"exp_avg.masked_decoder.norm.bias": torch.ones(16)}
    folder = tmp_path / CHECKPOINTS / checkpoint.name_of(7, 1)
    checkpoint.save(folder, state | moments, trainer_state(7, taxonomy))
    loaded, label_space, step = load_model(settings.model, "panoptic", tmp_path, None, CPU)
    assert (label_space, step) == (taxonomy, 7)
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    content = (folder / checkpoint.STATE).read_bytes()
    (folder / checkpoint.STATE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsageError, match="damaged"):
        load_model(settings.model, "panoptic", tmp_path, None, CPU)


def test_the_meter_counts_images_and_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    measured = Meter(global_batch=16)
    now[0] += 50
    measured.restart()  # the time of an evaluation is excluded
    for _ in range(4):
        with measured.waiting():
            now[0] += 0.5
        now[0] += 1.5
        measured.step()
    expected = {"interval_s": 8.0, "step_s": 2.0, "data_wait_s": 0.5, "images_per_s": 8.0}
    assert measured.read() == expected
    now[0] += 4
    measured.step()
    assert measured.read() == {
        "interval_s": 4.0, "step_s": 4.0, "data_wait_s": 0.0, "images_per_s": 4.0,
    }  # fmt: skip


def test_settings_that_do_not_fit_the_checkpoint_are_a_usage_error(tmp_path, photographs):
    settings = smallest(photographs).model
    folder = tmp_path / CHECKPOINTS / checkpoint.name_of(7, 1)
    checkpoint.save(folder, {"model.other": torch.ones(1)}, trainer_state(7))
    with pytest.raises(UsageError, match=r"does not fit the model in config\.yaml"):
        load_model(settings, "panoptic", tmp_path, None, CPU)
