"""What a restart relies on: starts that are counted, and records that end where it begins."""

import json

import pytest
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from jobs import config as configs
from jobs.train import _text
from pipeline.run.folder import rewind
from pipeline.run.track import EVENTS, METRICS
from pipeline.train import train
from shards.errors import DataError
from shards.jsonl import append, rows
from tests.jobs import small


def test_a_start_is_recorded_before_anything_can_fail(tmp_path, photographs):
    """Else workers that fail while they set up would be started again for ever."""
    _, preset, *overrides = small.words(photographs, "scaling.workers=1", "model.dim=36")
    config = configs.load(preset, [*overrides, "tracking.wandb.mode=disabled"])
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"model\.dim=36"):
                train(config, tmp_path, launch="one")
    finally:
        dist.destroy_process_group()
    starts = [row for row in rows(tmp_path / EVENTS) if row["event"] == "start"]
    assert [(row["attempt"], row["launch"], row["step"]) for row in starts] == [
        (1, "one", 0),
        (2, "one", 0),
    ]


def test_what_lies_past_the_checkpoint_is_forgotten(tmp_path):
    for step in range(1, 6):
        append(tmp_path / METRICS, {"step": step, "loss": float(step)})
    append(tmp_path / METRICS, {"step": 4, "val/PQ": 1.0})
    (tmp_path / "evaluations").mkdir()
    for name in ("step-000000002", "step-000000003", "step-000000004", "val-3-step-000000004"):
        (tmp_path / "evaluations" / f"{name}.json").write_text(json.dumps({"step": 0}))
    rewind(tmp_path, 3)
    assert [row["step"] for row in rows(tmp_path / METRICS)] == [1, 2, 3]
    assert {path.stem for path in (tmp_path / "evaluations").iterdir()} == {
        "step-000000002",
        "step-000000003",
        "val-3-step-000000004",
    }


class Damaged(IterableDataset):
    """Fails as a store with a damaged sample does."""

    def __iter__(self):
        raise DataError("train/000000.tar: sample 7 is damaged; build the set again")
        yield


def test_an_error_in_a_loader_process_is_told_in_one_line():
    with pytest.raises(DataError) as error:
        next(iter(DataLoader(Damaged(), batch_size=None, num_workers=1)))
    assert "Traceback" in str(error.value), "torch hands on a whole traceback"
    assert _text(error.value) == "train/000000.tar: sample 7 is damaged; build the set again"
    assert _text(ValueError("model.dim=36:\nwrong")) == "model.dim=36:\nwrong"
