"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sums of `value`, bilinearly sampled at a few places of every level.

    Args:
        value: [B, N, heads, D]; the levels are concatenated along N = Σ H·W.
        shapes: (H, W) of each level.
        locations: [B, queries, heads, levels, points, 2], x first, normalised so that pixel i of n
            has its centre at (i + 0.5) / n; zeros are read outside [0, 1].
        weights: [B, queries, heads, levels, points].

    Returns:
        [B, queries, heads·D], in the dtype of `locations`.
    """
    batch, _, heads, _ = value.shape
    # points before queries, so that the sum over points runs along long contiguous rows
    grids = (2 * locations - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # [B·heads, l, p, q, 2]
    weights = weights.permute(0, 2, 3, 4, 1).flatten(0, 1)  # [B·heads, l, p, q]
    planes = value.to(locations.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # [B·heads, D, N]
    output = None
    for level, plane in enumerate(planes.split([h * w for h, w in shapes], dim=2)):
        plane = plane.unflatten(2, shapes[level])  # [B·heads, D, H, W]
        sampled = F.grid_sample(plane, grids[:, level], align_corners=False)  # [B·heads, D, p, q]
        term = (sampled * weights[:, level, None]).sum(2)
        output = term if output is None else output + term
    return output.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)
