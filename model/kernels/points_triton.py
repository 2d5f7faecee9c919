"""Sampling of feature maps on a GPU, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8  # points of one program
WARPS = 4


def sample_rows(features: Tensor, points: Tensor) -> Tensor:
    """Return features [B, H, W, C] at points [B, P, 2]: [B, P, C] in the dtype of the points.

    Both are contiguous. The kernel reads the four neighbors of a point, which are whole rows of
    C channels, and sums them in the dtype of the points.
    """
    batch, height, width, channels = features.shape
    points = points.contiguous()
    count = points.shape[1]
    output = points.new_empty(batch, count, channels)
    with torch.cuda.device_of(features):
        _sample_rows[(triton.cdiv(count, BLOCK), batch)](
            features,
            points,
            output,
            height,
            width,
            count,
            channels,
            BLOCK_P=BLOCK,
            BLOCK_C=triton.next_power_of_2(channels),
            num_warps=WARPS,  # pyright: ignore[reportCallIssue]  # triton is untyped
        )
    return output


@triton.jit
def _sample_rows(
    features, points, output, height, width, count, channels,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = point < count
    channel = tl.arange(0, BLOCK_C)[None]
    is_channel = channel < channels
    # Only the offsets of images need 64 bits.
    features += image * height * width * channels
    points += image * count * 2
    output += image * count * channels
    x = tl.load(points + 2 * point, mask, 0) * width - 0.5
    y = tl.load(points + 2 * point + 1, mask, 0) * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    total = tl.zeros((BLOCK_P, BLOCK_C), output.dtype.element_ty)
    for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]  # triton is untyped
        column, row = left + corner % 2, top + corner // 2
        share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - row))
        exists = (column >= 0) & (column < width) & (row >= 0) & (row < height) & mask
        offset = (row.to(tl.int32) * width + column.to(tl.int32)) * channels
        tile = tl.load(features + offset[:, None] + channel, exists[:, None] & is_channel, 0)
        total += share[:, None] * tile.to(total.dtype)
    tl.store(output + point[:, None] * channels + channel, total, mask[:, None] & is_channel)
