"""Whole runs that rewind leave out the same samples on any number of processes, and after kills."""

import dataclasses
from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline.run import checkpoint, commit, guard
from pipeline.run.eventlog import EVENTS
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.journal import Journal
from pipeline.run.settings import CheckpointSettings, GuardSettings
from pipeline.run.track import METRICS
from pipeline.settings import BatchSettings, RunSettings, TrainerSettings
from pipeline.step.step import TrainingStep
from shards.jsonl import rows
from tests import distributed
from tests.pipeline.runs import Killed, attempt, smallest

STEPS, GLOBAL = 9, 8
EVERY = 3  # steps between checkpoints
BAD = range(7, 9)  # batches whose loss jumps, counted from 0 in the order of the run
REWOUND = [  # step 8 is bad, then step 7, which has the next batch
    {"step": 8, "to_step": 6, "position": 64, "samples": 16},
    {"step": 7, "to_step": 3, "position": 72, "samples": 48},
]


def settings_of(sets: Path) -> RunSettings:
    return dataclasses.replace(
        smallest(sets),
        batch=BatchSettings(size=GLOBAL, micro=GLOBAL),
        trainer=TrainerSettings(steps=STEPS, log_every=1),
        checkpoint=CheckpointSettings(every_steps=EVERY, keep=9),
        guard=GuardSettings(policy="rewind", spike=100, max_rewinds=len(REWOUND)),
    )


def with_jumps(settings: RunSettings, folder: Path) -> str:
    """Train with losses a million times as high in the batches of BAD."""
    losses = TrainingStep.losses

    def jumping(self, batch, totals):
        factor = 1e6 if batch.positions[0] // GLOBAL in BAD else 1.0
        return {name: loss * factor for name, loss in losses(self, batch, totals).items()}

    with (
        mock.patch.object(TrainingStep, "losses", jumping),
        mock.patch.object(guard, "LEAST_LOSSES", 3),
    ):
        return attempt(settings, folder)


def killed(settings: RunSettings, folder: Path, owner: object, name: str, call: int) -> str:
    """Train, and die in the n-th call of a function."""
    function, calls = getattr(owner, name), []

    def deadly(*args):
        calls.append(None)
        if len(calls) == call:
            raise Killed
        return function(*args)

    with mock.patch.object(owner, name, deadly):
        return with_jumps(settings, folder)


def runs_on_one_process(sets: Path, root: Path) -> dict[str, list[str]]:
    """Train a run without kills, and one that dies at each moment of a rewind."""
    settings = settings_of(sets)
    moments: list[tuple[object, str, int]] = [
        (Journal, "return_before", 1),
        (Journal, "rewound", 1),  # the checkpoints past step 6 are gone
        (Journal, "rewound", 2),  # the first rewind is over, and the second one is not saved
        (commit, "remove", 1),
        (TrainingStep, "receive", 3),
    ]
    deaths = [killed(settings, root / "killed", *moment) for moment in moments]
    return {
        "undisturbed": [with_jumps(settings, root / "undisturbed")],
        "killed": [*deaths, with_jumps(settings, root / "killed")],
    }


def runs_on_two_processes(sets: Path, root: Path) -> str:
    return with_jumps(settings_of(sets), root / "two")


def metrics(folder: Path, name: str) -> list:
    return [row[name] for row in rows(folder / METRICS) if "loss" in row]


def rewinds(folder: Path) -> list[dict]:
    return [row for row in rows(folder / EVENTS) if row["event"] == "rewound"]


def end(folder: Path):
    return checkpoint.load(checkpoint.committed(folder / CHECKPOINTS)[0])


@pytest.fixture(scope="module")
def undisturbed(photographs, tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    root = tmp_path_factory.mktemp("runs")
    return root, distributed.run(runs_on_one_process, 1, photographs, root)[0]


@pytest.mark.slow
def test_a_run_leaves_out_the_images_since_a_checkpoint_and_no_others(undisturbed):
    root, outcomes = undisturbed
    folder = root / "undisturbed"
    assert outcomes["undisturbed"] == ["done"]
    found = rewinds(folder)
    assert [{name: row[name] for name in REWOUND[0]} for row in found] == REWOUND
    assert all(row["reason"].startswith("the loss jumps to ") for row in found)
    assert metrics(folder, "step") == list(range(1, STEPS + 1))
    trained = [p for after in metrics(folder, "position") for p in range(after - GLOBAL, after)]
    left_out = range(REWOUND[1]["position"] - REWOUND[1]["samples"], REWOUND[1]["position"])
    assert sorted([*trained, *left_out]) == list(range(STEPS * GLOBAL + len(left_out)))
    progress = end(folder)[1].progress
    assert (progress.rewinds, progress.position) == (len(REWOUND), trained[-1] + 1)
    assert list(progress.watched.losses) == pytest.approx(metrics(folder, "loss"), rel=1e-6)


@pytest.mark.slow
def test_a_run_that_is_killed_at_each_moment_of_a_rewind_has_the_same_bits(undisturbed):
    root, outcomes = undisturbed
    *deaths, last = outcomes["killed"]
    assert set(deaths) == {"Killed: "}
    assert last == "done"
    (state, trainer), (expected, once) = end(root / "killed"), end(root / "undisturbed")
    assert trainer.progress == once.progress
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    for name in ("position", "loss"):
        assert metrics(root / "killed", name) == metrics(root / "undisturbed", name)


@pytest.mark.slow
def test_two_processes_rewind_like_one(undisturbed, photographs):
    root, _ = undisturbed
    assert distributed.run(runs_on_two_processes, 2, photographs, root) == ["done", "done"]
    one, two = root / "undisturbed", root / "two"
    assert metrics(two, "position") == metrics(one, "position")
    assert metrics(two, "loss") == pytest.approx(metrics(one, "loss"), rel=1e-4)
