"""Sampling of features and of masks in integer maps agrees with grid_sample."""

import pytest
import torch
import torch.nn.functional as F

from model.points import (
    neighbors,
    row_sampler,
    sample,
    sample_pairs,
    sample_shared,
    uncertain_points,
)
from tests.model.samples import boxes


def reference(planes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return planes [M, H, W] at points [M, P, 2] by grid_sample."""
    grid = 2 * points[:, None] - 1
    return F.grid_sample(planes[:, None], grid, align_corners=False)[:, 0, 0]


def edgy_points(*shape: int) -> torch.Tensor:
    """Return uniform points of which a third lie within a pixel of the border."""
    torch.manual_seed(0)
    points = torch.rand(*shape, 2, dtype=torch.float64)
    third = shape[-1] // 3
    points[..., :third, 0] *= 0.02
    points[..., third // 2 : third, 1] = 1 - 0.02 * points[..., third // 2 : third, 1]
    return points


def test_product_and_sampling_commute() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    embeddings = torch.randn(2, 3, 5, dtype=torch.float64)
    points = edgy_points(2, 60)
    masks = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    early = torch.stack([reference(masks[:, q], points) for q in range(3)], dim=1)
    torch.testing.assert_close(embeddings @ sample(features, points), early, rtol=0, atol=1e-12)


def test_rows_are_sampled_as_maps_are() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    points = edgy_points(2, 60)
    sampled = row_sampler(features)(points)
    expected = sample(features, points).transpose(1, 2)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-12)


def test_masks_at_shared_points() -> None:
    for dtype in (torch.uint8, torch.int32):
        targets = boxes((32, 40), [3, 0, 7], classes=4)
        maps = targets.maps.to(dtype)
        points = edgy_points(3, 300)
        sampled = sample_shared(neighbors(maps), targets.layer, targets.value, points)
        assert sampled.shape == (3, 7, 300)
        for b, n in ((0, 0), (0, 2), (2, 1), (2, 6)):
            mask = (maps[b, targets.layer[b, n]] == targets.value[b, n]).double()
            expected = reference(mask[None], points[b : b + 1])[0]
            assert 0 < expected.mean() < 1
            torch.testing.assert_close(sampled[b, n], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_masks_at_their_own_points(dtype) -> None:
    targets = boxes((32, 40), [3, 0, 7], classes=4)
    image = torch.tensor([0, 0, 2, 2, 2])
    target = torch.tensor([2, 0, 6, 1, 1])
    layer, value = targets.layer[image, target], targets.value[image, target]
    points = edgy_points(5, 300)
    sampled = sample_pairs(neighbors(targets.maps.to(dtype)), image, layer, value, points)
    masks = (targets.maps[image, layer] == value[:, None, None]).double()
    torch.testing.assert_close(sampled, reference(masks, points), rtol=0, atol=1e-12)


def test_uncertain_points_are_the_least_certain() -> None:
    logits = torch.randn(2, 6, 6, dtype=torch.float64)
    candidates, uniform = edgy_points(2, 40), edgy_points(2, 5)
    points = uncertain_points(logits, candidates, uniform, keep=10)
    certainty = reference(logits, candidates).abs().sort(dim=1).values
    found = reference(logits, points[:, :10]).abs().sort(dim=1).values
    torch.testing.assert_close(found, certainty[:, :10], rtol=0, atol=1e-12)
    assert torch.equal(points[:, 10:], uniform)
