"""Bilinear sampling at points: of feature maps, and of masks given as integer maps.

Points are normalized (x, y) in [0, 1)²; pixel i of n has its center at (i + 0.5) / n and zeros lie
outside, as in `grid_sample(align_corners=False)`. Everything computes in the dtype of the points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CODES = {torch.uint8: 1 << 8, torch.int32: 1 << 16}  # dtype of an integer map -> values below this


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Features [B, C, H, W] at points [B, P, 2]: [B, C, P]. Coordinates carry no gradient."""
    grid = (2 * points - 1)[:, :, None]  # [B, P, 1, 2]
    return F.grid_sample(features, grid, align_corners=False)[..., 0]


def padded_rows(features: Tensor) -> Tensor:
    """[B, C, H, W] as `sample_rows` takes it: [B, H + 2, W + 2, C] with a border of zeros."""
    return F.pad(features, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()


def sample_rows(rows: Tensor, points: Tensor) -> Tensor:
    """`sample` for many channels: [B, P, C] of `padded_rows` at points [B, P, 2], by whole rows."""
    batch, height, width = rows.shape[:3]
    index, fraction = _place(points, height - 2, width - 2, stride=width)
    image = torch.arange(batch, device=rows.device)[:, None] * (height * width)
    first = index + image  # [B, P]
    taps = torch.stack((first, first + 1, first + width, first + width + 1), dim=2)
    sampled = F.embedding_bag(
        taps.flatten(0, 1),
        rows.flatten(0, 2),
        per_sample_weights=_weights(fraction).flatten(0, 1),
        mode="sum",
    )
    return sampled.unflatten(0, (batch, -1))


def neighbors(maps: Tensor) -> Tensor:
    """Integer maps [B, layers, H, W] by groups of 2 x 2: [B, layers, H + 1, W + 1, 4].

    Group (y, x) is what a point between pixels (y - 1, x - 1) and (y, x) looks at; 0 lies outside.
    """
    padded = F.pad(maps, (1, 1, 1, 1))
    upper, lower = padded[:, :, :-1], padded[:, :, 1:]
    corners = (upper[..., :-1], upper[..., 1:], lower[..., :-1], lower[..., 1:])
    return torch.stack(corners, dim=4)


def sample_shared(groups: Tensor, layer: Tensor, value: Tensor, points: Tensor) -> Tensor:
    """All masks of each image at the same points.

    Args:
        groups: `neighbors` of integer maps [B, layers, H, W].
        layer, value: i64 [B, N]; mask n of image b is `maps[b, layer[b, n]] == value[b, n]`, and
            value 0 is no mask.
        points: [B, P, 2].

    Returns:
        Fractional masks in [0, 1]: [B, N, P].
    """
    batch, layers, height, width, _ = groups.shape
    index, fraction = _place(points, height - 1, width - 1, stride=width)
    index = index[:, None, :, None].expand(-1, layers, -1, 4)
    codes = groups.flatten(2, 3).gather(2, index)  # [B, layers, P, 4]

    masks = layer.shape[1]
    owner = layer.new_full((batch, layers, CODES[groups.dtype]), masks)  # code -> mask, N = none
    image = torch.arange(batch, device=layer.device)[:, None]
    owner[image, layer, value] = torch.arange(masks, device=layer.device)
    owner[:, :, 0] = masks
    owners = owner.gather(2, codes.flatten(2).long()).view(codes.shape)

    weights = _weights(fraction)  # [B, P, 4]
    sampled = points.new_zeros((batch, masks + 1, points.shape[1]))
    for plane in owners.unbind(1):
        for corner, weight in zip(plane.unbind(2), weights.unbind(2), strict=True):
            sampled.scatter_add_(1, corner[:, None], weight[:, None])
    return sampled[:, :masks]


def sample_pairs(
    groups: Tensor, image: Tensor, layer: Tensor, value: Tensor, points: Tensor
) -> Tensor:
    """Single masks, each at its own points: mask m is `maps[image[m], layer[m]] == value[m]`.

    Args:
        groups: `neighbors` of integer maps [B, layers, H, W].
        image, layer, value: i64 [M].
        points: [M, P, 2].

    Returns:
        Fractional masks in [0, 1]: [M, P].
    """
    _, layers, height, width, _ = groups.shape
    index, fraction = _place(points, height - 1, width - 1, stride=width)
    plane = (image * layers + layer) * (height * width)
    codes = _take(groups.flatten(0, 3), plane[:, None] + index)  # [M, P, 4]
    inside = (codes == value.to(codes.dtype)[:, None, None]).to(points.dtype)
    x, y = fraction.unbind(2)
    upper = torch.lerp(inside[..., 0], inside[..., 1], x)
    lower = torch.lerp(inside[..., 2], inside[..., 3], x)
    return torch.lerp(upper, lower, y)


def _take(groups: Tensor, index: Tensor) -> Tensor:
    """Rows of `groups` [n, 4] at `index` [..]: [.., 4]."""
    if groups.dtype == torch.uint8:  # four bytes move as one number
        return groups.view(torch.int32)[:, 0].take(index)[..., None].view(torch.uint8)
    return groups.index_select(0, index.flatten()).unflatten(0, index.shape)


def _place(points: Tensor, height: int, width: int, *, stride: int) -> tuple[Tensor, Tensor]:
    """Where points [.., 2] lie on a map of that size with a border of one pixel around it.

    Returns the flat index [..] of the pixel up and left, `stride` pixels in a row, and how far
    from it to the next, [.., 2] in [0, 1).
    """
    place = torch.stack((points[..., 0] * width, points[..., 1] * height), dim=-1) - 0.5
    low = place.floor()
    column, row = (low.long() + 1).unbind(-1)
    return row * stride + column, place - low


def _weights(fraction: Tensor) -> Tensor:
    """Bilinear weights [.., 4] of upper left, upper right, lower left and lower right pixel."""
    x, y = fraction.unbind(-1)
    return torch.stack(((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x), dim=-1)


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
