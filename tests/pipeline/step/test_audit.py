"""Flipped bits are found, and the worker that has them is named, on real process groups."""

import dataclasses
import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.mask2former import Mask2Former
from model.settings import SettingError
from pipeline.data.split import split_of
from pipeline.data.training import TrainingData
from pipeline.distributed import rank_and_world
from pipeline.run import eventlog, events
from pipeline.run.track import METRICS
from pipeline.settings import BatchSettings, GuardSettings, RunSettings, ZeroSettings
from pipeline.step.audit import Audit, Found
from pipeline.step.engine import Engine
from pipeline.step.optimizer import parameter_groups
from pipeline.step.step import TrainingStep
from shards.jsonl import rows
from tests import distributed
from tests.pipeline.runs import attempt, smallest

KINDS = ("weight", "output", "gradient")
CPU = torch.device("cpu")


def flip(tensor: Tensor, draw: random.Random) -> None:
    """Flip a random bit of a random number of a tensor."""
    index = tuple(draw.randrange(size) for size in tensor.shape)
    number = tensor.detach()[index].numpy().reshape(1).view(np.uint8)
    number[draw.randrange(number.size)] ^= np.uint8(1 << draw.randrange(8))


class Flip:
    """Flips one bit, once: of a weight now, or of an output or a gradient when it is computed."""

    def __init__(self, kind: str, module: nn.Module, draw: random.Random):
        self._draw, self._is_done = draw, False
        parameters = [p for p in module.parameters() if p.requires_grad]
        if kind == "weight":
            self._tensor = draw.choice(parameters)
            self._before = self._tensor.detach().clone()
            flip(self._tensor, draw)
        elif kind == "gradient":
            self._hook = draw.choice(parameters).register_hook(self._strike)
        else:
            parts = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
            self._hook = draw.choice(parts).register_forward_hook(
                lambda _, __, output: self._strike(output)
            )
        self._kind = kind

    def _strike(self, tensor: Tensor) -> None:
        if not self._is_done:
            flip(tensor, self._draw)
        self._is_done = True

    def undo(self) -> bool:
        """Remove it, and return whether a bit was flipped."""
        if self._kind == "weight":
            self._tensor.data.copy_(self._before)
            return True
        self._hook.remove()
        return self._is_done


def audited(settings: RunSettings, audits: int) -> list[tuple[str, int, bool, Found | None]]:
    """Audit steps with a planted flip each; return its kind, its worker, and what was found."""
    rank, world = rank_and_world()
    split = split_of(settings, world, rank)
    data = TrainingData(settings.data, settings.task, settings.seed)
    torch.manual_seed(settings.seed)
    module = Mask2Former(settings.model, len(data.taxonomy))
    engine = Engine(
        module,
        parameter_groups(module, settings.optimizer),
        zero=settings.zero,
        clip=settings.optimizer.clip,
        ema=None,
        micro_steps=split.micro_steps,
        device=CPU,
    )
    step = TrainingStep(
        engine,
        settings.criterion,
        queries=settings.model.queries,
        seed=settings.seed,
        split=split,
        device=CPU,
    )
    batch = step.receive(data.batches(0, split, pin_memory=False))
    audit = Audit(1, step, engine.module)
    results = []
    for number in range(audits + 1):
        draw = random.Random(number)
        kind, victim = KINDS[number % 3], draw.randrange(world)
        planted = None
        audit.updated(number)
        if rank == victim and number < audits and kind == "weight":
            planted = Flip(kind, engine.module, draw)
        found = audit.before(number + 1)
        if found is None:
            if rank == victim and number < audits:
                planted = Flip(kind, engine.module, draw)
            step.forward_backward(batch)
            found = audit.after(batch)
            engine.step(0.0)
        struck = planted.undo() if planted else True
        results.append((kind, victim, struck, found))
    return results


@pytest.mark.parametrize(
    ("world", "stage", "audits"),
    [
        pytest.param(2, 0, 102, marks=pytest.mark.slow),
        pytest.param(3, 1, 12, marks=pytest.mark.slow),
        (1, 2, 6),
    ],
)
def test_a_flipped_bit_is_found_and_the_worker_is_named(
    photographs: Path, world: int, stage: int, audits: int
):
    """The last audit has no flip, and finds nothing."""
    settings = smallest(
        photographs, batch=BatchSettings(2 * world, 2), zero=ZeroSettings(stage=stage)
    )
    of_ranks = distributed.run(audited, world, settings, audits, fork=True)
    found = [[result[3] for result in results] for results in of_ranks]
    assert all(results == found[0] for results in found)
    named = 0
    for number, (kind, victim, _, result) in enumerate(of_ranks[0][:audits]):
        assert of_ranks[victim][number][2], "nothing was flipped"
        named += result is not None and result.workers == [victim]
        assert result is None or kind in result.what
    assert named >= 0.99 * audits
    assert found[0][audits] is None


def trained(settings: RunSettings, folder: Path) -> list[str]:
    """Train without audits, with audits, and with audits whose second computation is wrong."""
    watched = dataclasses.replace(settings, guard=GuardSettings(audit_every=2))
    outcomes = [attempt(settings, folder / "plain"), attempt(watched, folder / "watched")]
    with mock.patch.object(Audit, "_computed", return_value={}):
        return [*outcomes, attempt(watched, folder / "ended")]


def test_an_audit_changes_nothing_and_ends_the_run_if_it_finds_something(photographs, tmp_path):
    (outcomes,) = distributed.run(trained, 1, smallest(photographs), tmp_path, fork=True)
    assert outcomes[:2] == ["done", "done"]
    losses = [
        [row["loss"] for row in rows(tmp_path / name / METRICS) if "loss" in row]
        for name in ("plain", "watched")
    ]
    assert losses[0] == losses[1]
    (event,) = eventlog.read_kind(tmp_path / "ended", events.Audited)
    assert (event.step, event.workers) == (2, [0])
    assert event.describe().startswith("step 2: worker 0 (")
    assert event.problem in outcomes[2]


def test_shards_of_weights_cannot_be_compared(photographs):
    with pytest.raises(SettingError, match=r"^guard.audit_every=5 with zero.stage=3"):
        smallest(photographs, guard=GuardSettings(audit_every=5), zero=ZeroSettings(stage=3))
