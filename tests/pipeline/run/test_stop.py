"""A request to stop that only one rank sees ends all ranks at one step, with its checkpoint."""

import dataclasses
import itertools
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from pipeline.run import checkpoint, eventlog, events
from pipeline.train import train
from tests import distributed
from tests.pipeline.runs import smallest

pytestmark = pytest.mark.slow

MICRO_STEPS = 2  # of a rank in a step


def outcome(settings, folder: Path, call: int | None, workers: int | None = None) -> dict:
    """Train, and let rank 1 find a request at its n-th look; None: there is no request.

    A number of workers can take over at any checkpoint; None: there are none.
    """
    looks = itertools.count(1)

    def is_requested(_: Path) -> bool:
        return dist.get_rank() == 1 and call is not None and next(looks) >= call

    with mock.patch("pipeline.run.stop.is_requested", is_requested):
        is_finished = train(settings, folder, more=lambda: workers)
    dist.barrier()
    saved = {checkpoint.step_of(path) for path in checkpoint.committed(folder / "checkpoints")}
    stops = eventlog.read_kind(folder, events.Stopped)
    stopped = [event.step if event.workers is None else event.describe() for event in stops]
    scored = (folder / "evaluations").exists()
    return {"finished": is_finished, "saved": saved, "stopped": stopped, "scored": scored}


def all_cases(sets: Path, root: Path) -> dict:
    plain = smallest(sets)
    rare = dataclasses.replace(plain.checkpoint, every_steps=100)
    plain = dataclasses.replace(plain, checkpoint=rare)
    often = dataclasses.replace(plain.checkpoint, every_steps=3)
    scored = dataclasses.replace(plain.evaluation, at_start=True, images=4)
    # A rank looks once when it starts, before each micro-batch, and after each image it scores.
    return {
        "start": outcome(plain, root / "start", 1),
        "step": outcome(plain, root / "step", 1 + 2 * MICRO_STEPS + 2),
        "grown": outcome(dataclasses.replace(plain, checkpoint=often), root / "grown", None, 3),
        "resumed": outcome(plain, root / "step", None),
        "evaluation": outcome(
            dataclasses.replace(plain, evaluation=scored), root / "evaluation", 3
        ),
    }


@pytest.fixture(scope="module")
def ranks(photographs, tmp_path_factory):
    root = tmp_path_factory.mktemp("stopped")
    return distributed.run(all_cases, 2, photographs, root)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("case", "finished", "saved", "stopped", "scored"),
    [
        ("start", False, set(), [], False),
        ("step", False, {0, 2}, [2], False),
        ("grown", False, {0, 3}, ["step 3: 3 workers fit, and take over"], False),
        ("resumed", True, {0, 2, 4}, [2], True),
        ("evaluation", False, {0}, [0], False),
    ],
)
def test_all_ranks_stop_at_one_step(ranks, rank, case, finished, saved, stopped, scored):
    assert ranks[rank][case] == {
        "finished": finished,
        "saved": saved,
        "stopped": stopped,
        "scored": scored,
    }
