"""Settings that may change when a run is resumed, and what train says of RAY_ADDRESS."""

import shutil

import pytest

from jobs import config as configs
from jobs import train
from jobs.resume import open_run
from pipeline.data.store import Store
from pipeline.data.stream import train_sets
from shards.errors import UsageError
from tests.jobs import small

# None of these changes what is learned.
FREE = [
    "checkpoint.every_steps=7",
    "checkpoint.keep=9",
    "evaluation.every_steps=7",
    "evaluation.short=96",
    "evaluation.segment.object_threshold=0.5",
    "trainer.log_every=7",
    "batch.micro=1",
    "zero.stage=2",
    "model.checkpoint_activations=true",
    "model.compile=true",
    "scaling.workers=1",
    "failure.max_restarts=1",
    "tracking.wandb.mode=disabled",
    "data.loader_workers=3",
    "data.stall_timeout_s=7",
    "data.cache.gib=7.0",
    "data.max_damaged=7",
    "runs=/elsewhere",
]
FIXED = [
    ("seed=7", "seed: 42 -> 7"),
    ("batch.size=16", "batch.size: 8 -> 16"),
    ("model.queries=13", "model.queries: 12 -> 13"),
    ("model.freeze=[backbone.stem]", r"model.freeze: \[\] -> \['backbone.stem'\]"),
    ("optimizer.ema=0.5", "optimizer.ema: None -> 0.5"),
    ("criterion.points=65", "criterion.points: 64 -> 65"),
    ("optimizer.lr=0.5", "optimizer.lr: 0.001 -> 0.5"),
    ("data.crop=96", "data.crop: 64 -> 96"),
]


def resumed(folder, photographs, started_with: list[str], change: str) -> bool:
    """Open a run that was started with some settings, with one more."""
    run = small.untrained(folder, photographs, *started_with)
    _, preset, *overrides = small.words(photographs, *started_with, change)
    config = configs.load(preset, overrides)
    return open_run(run, config, (train_sets(config.data), Store(config.data.val)))


@pytest.mark.parametrize("change", FREE)
def test_what_does_not_change_what_is_learned_may_change(tmp_path, photographs, change):
    assert resumed(tmp_path, photographs, [], change)
    key, value = change.split("=")
    saved = configs.flat(configs.to_dict(configs.load_run(tmp_path / "runs" / small.NAME)))
    assert str(saved[key]).lower() == value


@pytest.mark.parametrize(("change", "text"), FIXED)
def test_what_changes_what_is_learned_may_not(tmp_path, photographs, change, text):
    with pytest.raises(UsageError, match=text):
        resumed(tmp_path, photographs, [], change)


@pytest.mark.parametrize(
    "started_with",
    ["criterion.class_normalizer=local", "model.norm=batch", "model.norm=sync_batch"],
)
def test_micro_batches_are_fixed_if_losses_or_norms_depend_on_them(
    tmp_path, photographs, started_with
):
    with pytest.raises(UsageError, match=r"batch\.micro: 2 -> 1"):
        resumed(tmp_path, photographs, [started_with], "batch.micro=1")


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_the_stage_is_fixed_if_checkpoints_are_sharded(tmp_path, photographs, before, after):
    with pytest.raises(UsageError, match=rf"zero\.stage: {before} -> {after}"):
        resumed(tmp_path, photographs, [f"zero.stage={before}"], f"zero.stage={after}")


def test_a_moved_set_is_the_same_set_and_another_one_is_not(tmp_path, photographs):
    moved = shutil.copytree(photographs, tmp_path / "moved")
    assert resumed(tmp_path, photographs, [], f"data.train={moved / 'train'}")
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(UsageError, match=r"the shards of data\.train"):
        resumed(tmp_path, photographs, [], f"data.train={moved / 'val'}")


def test_train_says_that_it_runs_on_this_machine(tmp_path, photographs, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.chdir(tmp_path)
    _, preset, *overrides = small.words(photographs, "data.train=nowhere")
    said = pytest.warns(UserWarning, match=r"RAY_ADDRESS=10\.0\.0\.1:6379 is ignored: .* machine")
    with said, pytest.raises(UsageError, match="nowhere"):
        train.train(preset, overrides)
