"""Whole runs whose weights are averaged or partly frozen, beside a plain run of one process."""

import dataclasses
from pathlib import Path

import pytest
import torch

from model.mask2former import Mask2Former
from model.parts import part_of
from model.weights.load import load
from pipeline.data.store import Store
from pipeline.run import checkpoint
from pipeline.run.folder import CHECKPOINTS, scores_of
from pipeline.run.restore import load_model
from pipeline.score.evaluate import evaluate
from pipeline.settings import RunSettings
from pipeline.step.engine import ZeroSettings
from tests import distributed
from tests.pipeline.runs import attempt, interrupted, smallest
from tests.pipeline.test_train import STEPS, assert_equal, end, events, losses

FROZEN = ("backbone.stem", "backbone.stages.1", "masked_decoder")


def averaged(plain: RunSettings) -> RunSettings:
    """Return settings of a run that averages its weights."""
    return dataclasses.replace(plain, optimizer=dataclasses.replace(plain.optimizer, ema=0.3))


def frozen(plain: RunSettings, stage: int = 0) -> RunSettings:
    """Return settings of a run with frozen parts."""
    model = dataclasses.replace(plain.model, freeze=list(FROZEN))
    return dataclasses.replace(plain, model=model, zero=ZeroSettings(stage))


def all_runs(sets: Path, root: Path) -> dict[str, str | list[str]]:
    """Train every run, and return the outcomes by name."""
    plain = smallest(sets)
    runs = {
        "plain": plain,
        "averaged": averaged(plain),
        **{f"frozen, stage {stage}": frozen(plain, stage) for stage in range(4)},
    }
    outcomes = {name: attempt(settings, root / name) for name, settings in runs.items()}
    return outcomes | {
        f"{name}, interrupted": interrupted(runs[name], root / f"{name}, interrupted")
        for name in ("averaged", "frozen, stage 0", "frozen, stage 3")
    }


@pytest.fixture(scope="module")
def runs(photographs, tmp_path_factory) -> tuple[Path, dict]:
    """Return the folder of all runs by name, and their outcomes."""
    root = tmp_path_factory.mktemp("runs")
    (outcomes,) = distributed.run(all_runs, 1, photographs, root, timeout_s=500)
    return root, outcomes


def start_of(folder: Path) -> dict[str, torch.Tensor]:
    oldest = checkpoint.committed(folder / CHECKPOINTS)[-1]
    assert checkpoint.step_of(oldest) == 0
    return checkpoint.load(oldest)[0]


@pytest.mark.slow
def test_averaged_weights_are_scored_and_loaded_and_do_not_change_the_training(runs, photographs):
    root, outcomes = runs
    folder = root / "averaged"
    assert outcomes["averaged"] == "done"
    assert outcomes["averaged, interrupted"] == ["Killed: ", "done"]
    assert_equal(root / "averaged, interrupted", folder)
    (state, _), (trained, _) = end(folder), end(root / "plain")
    averages = {name for name in state if name.startswith("average.")}
    assert state.keys() == trained.keys() | averages
    assert all(torch.equal(state[name], trained[name]) for name in trained)

    settings = averaged(smallest(photographs))
    cpu = torch.device("cpu")
    loaded, taxonomy, _ = load_model(settings.model, settings.task, folder, "last", cpu)
    initialized = Mask2Former(settings.model, len(taxonomy))
    load(initialized, checkpoint.committed(folder / CHECKPOINTS)[0])
    for model in (loaded, initialized):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, state[f"average.{name}"])
            assert not torch.equal(parameter, state[f"model.{name}"])

    (row,) = events(folder, "evaluation")
    assert row["averaged"] is True
    scores = scores_of(folder, STEPS)
    again = evaluate(loaded, Store(photographs / "val"), settings.evaluation, cpu)
    assert scores == {"step": STEPS, "averaged": True, **again}
    assert "averaged" not in scores_of(root / "plain", STEPS)


@pytest.mark.slow
def test_frozen_parts_stay_as_they_are_to_the_bit(runs):
    root, outcomes = runs
    for stage in (0, 3):
        assert outcomes[f"frozen, stage {stage}, interrupted"] == ["Killed: ", "done"]
    assert_equal(root / "frozen, stage 0, interrupted", root / "frozen, stage 0")
    for stage in range(4):
        name = f"frozen, stage {stage}"
        assert outcomes[name] == "done"
        folder = root / name
        state, first = end(folder)[0], start_of(folder)
        names = {name.removeprefix("model.") for name in state if name.startswith("model.")}
        kept = {name for name in names if part_of(name).name.startswith(FROZEN)}
        assert kept
        for name in names:
            is_same = torch.equal(state[f"model.{name}"], first[f"model.{name}"])
            assert is_same == (name in kept), name
            assert (f"exp_avg.{name}" in state) == (name not in kept and stage < 3)
        assert losses(folder) == pytest.approx(losses(root / "frozen, stage 0"), rel=1e-4)
    resumed = losses(root / "frozen, stage 3, interrupted")
    assert resumed == pytest.approx(losses(root / "frozen, stage 3"), rel=1e-4)
