"""Bilinear sampling at points: of feature maps, and of masks given as integer maps.

Points are normalised (x, y) in [0, 1)²; pixel i of n has its centre at (i + 0.5) / n and zeros lie
outside, as in `grid_sample(align_corners=False)`. Everything computes in the dtype of the points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Features [B, C, H, W] at points [B, P, 2]: [B, C, P]. Coordinates carry no gradient."""
    grid = (2 * points - 1)[:, :, None]  # [B, P, 1, 2]
    return F.grid_sample(features, grid, align_corners=False)[..., 0]


def sample_shared(maps: Tensor, layer: Tensor, value: Tensor, points: Tensor) -> Tensor:
    """All masks of each image at the same points.

    Args:
        maps: integer maps [B, layers, H, W].
        layer, value: i64 [B, N]; mask n of image b is `maps[b, layer[b, n]] == value[b, n]`.
        points: [B, P, 2].

    Returns:
        Fractional masks in [0, 1]: [B, N, P].
    """
    batch, layers, height, width = maps.shape
    index, weight = _taps(points, height, width)  # [B, 4, P]
    index = index.flatten(1)[:, None].expand(-1, layers, -1)
    codes = maps.flatten(2).gather(2, index).unflatten(2, weight.shape[1:])  # [B, layers, 4, P]
    image = torch.arange(batch, device=maps.device)[:, None]
    inside = codes[image, layer] == value.to(maps.dtype)[:, :, None, None]  # [B, N, 4, P]
    return (inside * weight[:, None]).sum(2)


def sample_pairs(
    maps: Tensor, image: Tensor, layer: Tensor, value: Tensor, points: Tensor
) -> Tensor:
    """Single masks, each at its own points: mask m is `maps[image[m], layer[m]] == value[m]`.

    Args:
        maps: integer maps [B, layers, H, W].
        image, layer, value: i64 [M].
        points: [M, P, 2].

    Returns:
        Fractional masks in [0, 1]: [M, P].
    """
    _, layers, height, width = maps.shape
    index, weight = _taps(points, height, width)  # [M, 4, P]
    plane = (image * layers + layer) * (height * width)
    codes = maps.flatten().take(plane[:, None, None] + index)
    return ((codes == value.to(maps.dtype)[:, None, None]) * weight).sum(1)


def _taps(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point: flat index and bilinear weight, [.., 4, P] each."""
    size = points.new_tensor((width, height))
    place = points * size - 0.5
    low = place.floor()
    upper = place - low  # weight of the right / lower neighbour
    low = low.long()
    x, weight_x = _axis(low[..., 0], upper[..., 0], width)  # [.., 2, P]
    y, weight_y = _axis(low[..., 1], upper[..., 1], height)
    index = y[..., :, None, :] * width + x[..., None, :, :]  # [.., 2, 2, P]
    weight = weight_y[..., :, None, :] * weight_x[..., None, :, :]
    return index.flatten(-3, -2), weight.flatten(-3, -2)


def _axis(low: Tensor, upper: Tensor, size: int) -> tuple[Tensor, Tensor]:
    index = torch.stack((low, low + 1), dim=-2)
    weight = torch.stack((1 - upper, upper), dim=-2)
    inside = (index >= 0) & (index < size)
    return index.clamp(0, size - 1), weight * inside


@torch.no_grad()
def uncertain_points(logits: Tensor, candidates: Tensor, uniform: Tensor, keep: int) -> Tensor:
    """Where a mask is undecided: the `keep` candidates of smallest |logit|, and the uniform points.

    PointRend (arXiv 1912.08193, section 3.1), as training of Mask2Former uses it.

    Args:
        logits: [M, h, w]. candidates: [M, K, 2]. uniform: [M, R, 2]. keep: at most K.

    Returns:
        [M, keep + R, 2].
    """
    certainty = sample(logits[:, None], candidates)[:, 0].abs()  # [M, K]
    chosen = certainty.topk(keep, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    return torch.cat((chosen, uniform), dim=1)
