"""The step benchmark gives both sides the same work."""

import pytest
import torch

from jobs.bench.gpu import SMALL
from jobs.bench.step import (
    Side,
    batch_of,
    build,
    loss_difference,
    measure_seconds,
    saved_bytes,
)
from model.criterion import CriterionSettings
from pipeline.data.batch import Batch
from tests.model.samples import boxes

POINTS = CriterionSettings(points=200)


@pytest.fixture(scope="module")
def batch() -> Batch:
    torch.manual_seed(0)
    targets = boxes((64, 64), [4, 4], classes=133, layers=1)
    return batch_of(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), targets)


@pytest.fixture(scope="module")
def sides(batch: Batch) -> dict[str, Side]:
    return build(SMALL, POINTS, batch)


def test_equal_draws_give_the_same_loss(sides, batch):
    assert loss_difference(sides, POINTS, batch) < 1e-5


def test_other_draws_give_another_loss(sides):
    torch.manual_seed(0)  # for the peer's draws
    with torch.no_grad():
        losses = {name: side.loss() for name, side in sides.items()}
    assert abs(losses["ours"] - losses["peer"]) / losses["peer"] > 1e-4


def test_parts_add_up_and_both_take_turns(sides):
    seconds = measure_seconds(sides, torch.device("cpu"))
    assert set(seconds) == {"forward", "backward", "time"}
    for name in sides:
        assert 0 < max(seconds["forward"][name], seconds["backward"][name]) < seconds["time"][name]
    assert all(p.grad is None for side in sides.values() for p in side.model.parameters())


def test_saved_bytes_are_of_activations_alone():
    layer, x = torch.nn.Linear(256, 1024), torch.randn(512, 256)
    side = Side(layer, lambda: layer(x).relu().square().sum())
    hidden = 512 * 1024 * 4 / 2**20
    assert saved_bytes(side, x) == hidden  # relu and square save the same tensor
