"""Bilinear sampling at points: of feature maps, and of masks given as integer maps.

Points are normalized (x, y) in [0, 1)². Pixel i of n has its center at (i + 0.5) / n. Pixels
outside of a map count as zeros, as in `grid_sample(align_corners=False)`. Results have the dtype
of the points.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import REFERENCE, implementation

CODES = {torch.uint8: 1 << 8, torch.int32: 1 << 16}  # dtype of a map -> bound of its values


def sample(features: Tensor, points: Tensor) -> Tensor:
    """Return features [B, C, H, W] at points [B, P, 2]: [B, C, P]."""
    grid = (2 * points - 1)[:, :, None]  # [B, P, 1, 2]
    return F.grid_sample(features, grid, align_corners=False)[..., 0]


def row_sampler(features: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that samples features [B, C, H, W] at points [B, P, 2]: [B, P, C].

    The function does the same as `sample`, without a gradient, in a form that suits many channels:
    the four neighbors of a point are four whole rows of C channels. The result has the dtype of the
    points, which is float32 or, for features in float64, float64.
    """
    features = features.detach()
    if implementation("sample_rows", features.device) == REFERENCE:
        return partial(_sample_rows, _padded_rows(features))
    from model.kernels import points_triton  # missing on machines without a GPU

    # Features whose channels are last in memory are not copied.
    return partial(points_triton.sample_rows, features.permute(0, 2, 3, 1).contiguous())


def _padded_rows(features: Tensor) -> Tensor:
    """Return [B, C, H, W] as [B, H + 2, W + 2, C] of at least 32 bits, framed by zeros."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    return F.pad(features.to(dtype), (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()


def _sample_rows(rows: Tensor, points: Tensor) -> Tensor:
    """Return the features of `_padded_rows` at points [B, P, 2]: [B, P, C].

    `embedding_bag` reads and weights the neighbors of a point in one pass.
    """
    batch, height, width = rows.shape[:3]
    index, fraction = _locate(points, height - 2, width - 2, stride=width)
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
    """Return the 2 x 2 groups [B, layers, H + 1, W + 1, 4] of integer maps [B, layers, H, W].

    Group (y, x) holds the four pixels around a point between pixels (y - 1, x - 1) and (y, x), with
    0 for pixels outside. All four are adjacent in memory, so one read (4 bytes for uint8)
    serves a point.
    """
    padded = F.pad(maps, (1, 1, 1, 1))
    upper, lower = padded[:, :, :-1], padded[:, :, 1:]
    corners = (upper[..., :-1], upper[..., 1:], lower[..., :-1], lower[..., 1:])
    return torch.stack(corners, dim=4)


def sample_shared(groups: Tensor, layer: Tensor, value: Tensor, points: Tensor) -> Tensor:
    """Sample all masks of each image at the same points.

    Args:
        groups: `neighbors` of integer maps [B, layers, H, W].
        layer: int64 [B, N].
        value: int64 [B, N]; mask n of image b is `maps[b, layer[b, n]] == value[b, n]`. Mask
            n of image b is empty if `value[b, n]` is 0.
        points: [B, P, 2].

    Returns:
        Fractional masks in [0, 1]: [B, N, P].
    """
    batch, layers, height, width, _ = groups.shape
    index, fraction = _locate(points, height - 1, width - 1, stride=width)
    index = index[:, None, :, None].expand(-1, layers, -1, 4)
    codes = groups.flatten(2, 3).gather(2, index)  # [B, layers, P, 4]

    # A loop over the masks would read every map N times. Instead, a table per layer translates a
    # pixel's value to the mask that it belongs to, and the four bilinear weights of a point are
    # added to the rows of those masks. Row N collects the pixels without a mask and is cut off.
    masks = layer.shape[1]
    owner = layer.new_full((batch, layers, CODES[groups.dtype]), masks)  # value -> mask, N = none
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
    """Sample single masks, each at different points.

    Args:
        groups: `neighbors` of integer maps [B, layers, H, W].
        image: int64 [M].
        layer: int64 [M].
        value: int64 [M]; mask m is `maps[image[m], layer[m]] == value[m]`.
        points: [M, P, 2], the points of each mask.

    Returns:
        Fractional masks in [0, 1]: [M, P].
    """
    _, layers, height, width, _ = groups.shape
    index, fraction = _locate(points, height - 1, width - 1, stride=width)
    plane = (image * layers + layer) * (height * width)
    codes = _take(groups.flatten(0, 3), plane[:, None] + index)  # [M, P, 4]
    inside = (codes == value.to(codes.dtype)[:, None, None]).to(points.dtype)
    x, y = fraction.unbind(2)
    upper = torch.lerp(inside[..., 0], inside[..., 1], x)
    lower = torch.lerp(inside[..., 2], inside[..., 3], x)
    return torch.lerp(upper, lower, y)


def _take(groups: Tensor, index: Tensor) -> Tensor:
    """Return the rows [.., 4] of `groups` [n, 4] at `index` [..]."""
    if groups.dtype == torch.uint8:  # four bytes are read as one number
        return groups.view(torch.int32)[:, 0].take(index)[..., None].view(torch.uint8)
    return groups.index_select(0, index.flatten()).unflatten(0, index.shape)


def _locate(points: Tensor, height: int, width: int, *, stride: int) -> tuple[Tensor, Tensor]:
    """Find points [.., 2] on a map of `height` x `width` pixels, framed by one more pixel.

    Returns:
        The flat index [..] of the pixel above and to the left, in rows of `stride` pixels, and the
        distance from its center, [.., 2] in [0, 1) pixels.
    """
    pixel = torch.stack((points[..., 0] * width, points[..., 1] * height), dim=-1) - 0.5
    low = pixel.floor()
    column, row = (low.long() + 1).unbind(-1)
    return row * stride + column, pixel - low


def _weights(fraction: Tensor) -> Tensor:
    """Return the bilinear weights [.., 4] of the pixels in the order of `neighbors`."""
    x, y = fraction.unbind(-1)
    return torch.stack(((1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x), dim=-1)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, candidates: Tensor, uniform: Tensor, keep: int, void: Tensor | None = None
) -> Tensor:
    """Return the candidates that a mask is least certain of, and the uniform points after them.

    This is the sampling of PointRend (arXiv 1912.08193, section 3.1) used by Mask2Former.

    Args:
        logits: [M, h, w], mask logits.
        candidates: [M, K, 2].
        uniform: [M, R, 2].
        keep: Number of candidates to keep, those with the smallest |logit|; at most K.
        void: bool [M, K], the candidates that are kept only if there are too few others.

    Returns:
        [M, keep + R, 2].
    """
    certainty = sample(logits[:, None], candidates)[:, 0].abs()  # [M, K]
    if void is not None:
        certainty = certainty.masked_fill(void, torch.inf)
    chosen = certainty.topk(keep, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    return torch.cat((chosen, uniform), dim=1)
