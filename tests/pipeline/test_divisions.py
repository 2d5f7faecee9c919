"""Whole runs on 1, 3, 2, and 5 processes, at every ZeRO stage: the same batches and losses.

Losses agree to 5e-8, the rounding of float32 sums.
"""

import dataclasses
from collections import defaultdict
from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline.data.stream import order_of, train_sets
from pipeline.run import checkpoint
from pipeline.run.eventlog import EVENTS
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.track import METRICS
from pipeline.settings import (
    BatchSettings,
    CheckpointSettings,
    OptimizerSettings,
    RunSettings,
    TrainerSettings,
    ZeroSettings,
)
from pipeline.step.step import TrainingStep
from shards.jsonl import rows
from tests import distributed
from tests.pipeline.runs import attempt, smallest

GLOBAL = 8
WORLDS = (1, 3, 2, 5)  # in this order, one run moves from each to the next, after two steps each
# Number of processes, size of micro-batches that does not divide the batch, and ZeRO stage. With
# micro-batches of one image, three processes have 3, 3, and 2, and the last one repeats one.
RUNS = (
    *((3, micro, stage) for micro in (1, 2) for stage in (0, 1, 2, 3)),
    *((1, 3, 0), (2, 3, 0), (5, 1, 0), (5, 8, 3)),
)
STEPS = 4
TOLERANCE = 1e-5


def settings_of(sets: Path, micro: int, steps: int = STEPS, stage: int = 0) -> RunSettings:
    plain = smallest(sets)
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, norm="frozen_batch"),  # it has buffers
        batch=BatchSettings(GLOBAL, micro),
        optimizer=OptimizerSettings(lr=1e-4, clip=1.0),
        trainer=TrainerSettings(steps=steps, log_every=1),
        checkpoint=CheckpointSettings(every_steps=2, keep=9),
        zero=ZeroSettings(stage),
    )


def trained(sets: Path, root: Path, world: int) -> dict[str, object]:
    """Train on the ranks of this process group in all divisions, and continue the moving run.

    Returns:
        The outcome of each run by name, and as "seen" the samples of the moving run by step.
    """
    outcomes: dict[str, object] = {}
    for run in RUNS:
        if run[0] == world:
            _, micro, stage = run
            outcomes[str(run)] = attempt(settings_of(sets, micro, stage=stage), root / str(run))
    receive, seen = TrainingStep.receive, []

    def recorded(self, *args):
        received = receive(self, *args)
        columns = ([getattr(b, name) for b in received.batches] for name in ("positions", "keys"))
        seen.append([list(zip(*pair, strict=True)) for pair in zip(*columns, strict=True)])
        return received

    steps = 2 * (1 + WORLDS.index(world))
    with mock.patch.object(TrainingStep, "receive", recorded):
        outcomes["moving"] = attempt(settings_of(sets, 2, steps), root / "moving")
    if world == 1:
        whole = settings_of(sets, GLOBAL, 2 * len(WORLDS))
        outcomes["fixed"] = attempt(whole, root / "fixed")
    return outcomes | {"seen": seen}


@pytest.fixture(scope="module")
def runs(photographs, tmp_path_factory) -> tuple[Path, dict[int, list[dict]]]:
    """Return the folder of all runs, and what `trained` returned on each rank of each world."""
    root = tmp_path_factory.mktemp("runs")
    results = {
        world: distributed.run(trained, world, photographs, root, world, timeout_s=500, fork=True)
        for world in WORLDS
    }
    return root, results


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder / METRICS) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_every_division_and_stage_has_the_losses_of_whole_batches(runs, run):
    root, results = runs
    assert {result[str(run)] for result in results[run[0]]} == {"done"}
    found = losses(root / str(run))
    assert len(found) == STEPS
    assert found == pytest.approx(losses(root / "fixed")[:STEPS], rel=TOLERANCE)


@pytest.mark.slow
def test_a_run_that_moves_between_worlds_is_the_fixed_run(runs, photographs):
    """1 process, then 3, 2, and 5: each step has the same samples, each sample once per epoch."""
    root, results = runs
    starts = [row for row in rows(root / "moving" / EVENTS) if row["event"] == "start"]
    assert [(start["world_size"], start["step"]) for start in starts] == [
        (1, 0), (3, 2), (2, 4), (5, 6)
    ]  # fmt: skip
    settings = settings_of(photographs, 2)
    sets = train_sets(settings.data)
    order = order_of(sets, settings.data, settings.seed)
    seen, step = defaultdict(list), 0
    for world in WORLDS:
        assert {result["moving"] for result in results[world]} == {"done"}
        for together in zip(*(result["seen"] for result in results[world]), strict=True):
            shares = [[pair for batch in rank for pair in batch] for rank in together]
            assert {len(share) for share in shares} <= {GLOBAL // world, GLOBAL // world + 1}
            batch = sorted(pair for share in shares for pair in share)
            assert [p for p, _ in batch] == list(range(step * GLOBAL, (step + 1) * GLOBAL))
            for position, key in batch:
                ref = order.at(position)
                assert key == sets[ref.set].index.key[ref.sample]
                seen[ref.epoch].append(key)
            step += 1
    *whole, _ = seen.values()
    assert len(whole) == 6
    assert all(sorted(epoch) == sorted(sets[0].index.key) for epoch in whole)
    assert losses(root / "moving") == pytest.approx(losses(root / "fixed"), rel=TOLERANCE)
    (moved, trainer), (fixed, expected) = (
        checkpoint.load(checkpoint.committed(root / name / CHECKPOINTS)[0])
        for name in ("moving", "fixed")
    )
    assert trainer.progress == expected.progress
    assert moved.keys() == fixed.keys()
    buffers = [name for name in fixed if "running_" in name]
    assert buffers
    assert all(torch.equal(moved[name], fixed[name]) for name in buffers)
