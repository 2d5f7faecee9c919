"""What a restart relies on: recorded starts, and records that end at its checkpoint."""

import json
from unittest import mock

import pytest
import torch.distributed as dist

from jobs import config as configs
from pipeline.run.eventlog import EVENTS
from pipeline.run.events import Start
from pipeline.run.folder import rewind
from pipeline.run.restarts import run_id
from pipeline.run.track import METRICS
from pipeline.train import train
from shards.jsonl import append, rows
from tests.jobs import small


def test_a_start_is_recorded_before_anything_can_fail(tmp_path, photographs):
    """Otherwise workers that fail while they set up would be restarted without end."""
    _, preset, *overrides = small.words(photographs, "scaling.workers=1")
    config = configs.load(preset, [*overrides, "tracking.wandb.mode=disabled"])
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for _ in range(2):
            with (
                mock.patch("pipeline.run.build.build", side_effect=MemoryError("no memory")),
                pytest.raises(MemoryError, match="no memory"),
            ):
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


def test_the_agent_of_a_sweep_chooses_the_identifier_of_a_new_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    assert run_id("mine", tmp_path, []).startswith("mine-")
    monkeypatch.setenv("WANDB_SWEEP_ID", "tuning")
    assert run_id("mine", tmp_path, []) == "trial7"
    known = [Start(world_size=1, step=0, run_id="mine-1", folder=str(tmp_path))]
    assert run_id("mine", tmp_path, known) == "mine-1"
