"""The gradient of a global batch does not depend on its division into ranks and micro-batches.

Four processes train in float64 with stochastic depth on eight images of 0 to 30 segments, for 12
queries.
"""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.criterion import Criterion, CriterionSettings, Normalizers, normalizers
from model.mask2former import Mask2Former
from model.targets import Targets
from tests import distributed
from tests.model.samples import TINY_BACKBONES, keyed_draw, tiny_settings

COUNTS = [3, 30, 0, 1, 12, 0, 7, 30]
CLASSES, SIZE, QUERIES, WORLD = 5, (64, 64), 12, 4
# Sizes of the micro-batches of each rank, which take the images in this order.
LAYOUTS = {
    "1x8": [[8]],
    "2x4": [[4], [1, 3]],
    "4x2": [[2], [1, 1], [2], [1, 1]],
    "uneven": [[1], [5], [], [1, 1]],
}
SETTINGS = CriterionSettings(points=512)


def shares(layout: list[list[int]], rank: int) -> list[slice]:
    """Return the images of each micro-batch of a rank."""
    start = sum(map(sum, layout[:rank]))
    found = []
    for size in layout[rank] if rank < len(layout) else []:
        found.append(slice(start, start + size))
        start += size
    return found


def truth() -> Targets:
    """Return a box in a separate layer for each segment of each image.

    No two boxes agree at the sampled points, because rounding would decide which of two equal
    costs is matched.
    """
    most = max(COUNTS)
    maps = torch.zeros(len(COUNTS), most, *SIZE, dtype=torch.uint8)
    categories = torch.full((len(COUNTS), most), -1)
    for b, count in enumerate(COUNTS):
        for n in range(count):
            top, left = n, 7 * n % 32
            maps[b, n, top : top + 32, left : left + 32] = 1
            categories[b, n] = n % CLASSES
    return Targets(
        maps,
        categories,
        torch.arange(most).expand(len(COUNTS), -1),
        torch.ones_like(categories),
    )


def gradient(layout: list[list[int]], reduced: bool = True) -> dict[str, Tensor]:
    """Return the gradient of the global loss by parameter, summed over the ranks.

    Args:
        layout: The sizes of the micro-batches of each rank.
        reduced: Whether the normalizers are those of the global batch. Otherwise each rank uses
            those of its own images.
    """
    torch.manual_seed(0)
    settings = tiny_settings(
        backbone="dinov3_vit",
        backbone_config=TINY_BACKBONES["dinov3_vit"],
        norm="frozen_batch",
        drop_path=0.5,
        queries=QUERIES,
    )
    model = Mask2Former(settings, CLASSES).double().train()
    images = torch.randn(len(COUNTS), 3, *SIZE, dtype=torch.float64)
    targets = truth()
    parts = shares(layout, dist.get_rank())
    sums = torch.zeros(len(Normalizers._fields), dtype=torch.float64)
    for part in parts:
        sums += torch.stack(tuple(normalizers(targets.categories[part], QUERIES, SETTINGS)))
    if reduced:
        dist.all_reduce(sums)
    for part in parts:
        draw = keyed_draw(part.start, torch.float64)
        predictions = model(images[part], draw)
        piece = Targets(*(x[part] for x in targets))
        losses = Criterion(SETTINGS)(predictions, piece, draw, Normalizers(*sums))
        sum(losses.values()).backward()
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(found[name])
    return found


def exercise() -> dict[str, dict[str, Tensor]]:
    found = {name: gradient(layout) for name, layout in LAYOUTS.items()}
    return found | {"own normalizers": gradient(LAYOUTS["4x2"], reduced=False)}


@pytest.fixture(scope="module")
def gradients() -> dict[str, dict[str, Tensor]]:
    return distributed.run(exercise, WORLD, fork=True)[0]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of an element, relative to the largest one of its tensor.

    Biases of keys are excluded: softmax cancels them, so that their gradients are rounding errors.
    """
    named = {name: x for name, x in one.items() if not name.endswith("k_proj.bias")}
    return max(((x - other[name]).abs().max() / x.abs().max()).item() for name, x in named.items())


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "1x8"])
def test_any_split_has_the_gradient_of_the_whole(gradients, layout: str) -> None:
    assert distance(gradients["1x8"], gradients[layout]) < 1e-10


def test_normalizers_of_each_rank_alone_give_other_gradients(gradients) -> None:
    assert distance(gradients["1x8"], gradients["own normalizers"]) > 0.1
