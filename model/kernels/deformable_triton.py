# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""Deformable self-attention on a GPU, in Triton: one pass forward and one backward.

A program handles a few queries of one head. For each sample it reads four tiles [queries, D], the
corners of the sample's cell. Sample points and weights exist in registers only. Sums have the
dtype of the projections, whatever the dtype of the values. The gradients of the values are added
atomically, so their last bits depend on the order in which programs run.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.position import constant

Shapes = tuple[tuple[int, int], ...]

# Queries and warps of one program. Larger blocks and more warps take up to 1.6 times as long (16
# images of 1024 pixels on an H200). Running the programs of all heads or images side by side,
# instead of those of one head, takes up to 1.2 times as long.
BLOCK, WARPS = 8, 1


def forward(value: Tensor, shapes: Shapes, projected: Tensor) -> Tensor:
    """Return `model.deformable_self_attention` of the arguments."""
    value, projected = value.contiguous(), projected.contiguous()
    output = value.new_empty(*value.shape[:2], value.shape[2] * value.shape[3])
    _launch(_deformable_forward, value, shapes, projected, output)
    return output


def backward(
    gradient: Tensor, value: Tensor, shapes: Shapes, projected: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of value and projections, given that of the output."""
    gradient, value, projected = (x.contiguous() for x in (gradient, value, projected))
    of_value = torch.zeros_like(value, dtype=projected.dtype)
    of_projected = torch.empty_like(projected)
    _launch(_deformable_backward, value, shapes, projected, gradient, of_value, of_projected)
    return of_value.to(value.dtype), of_projected


def _launch(
    kernel: triton.JITFunction,
    value: Tensor,
    shapes: Shapes,
    projected: Tensor,
    *outputs: Tensor,
) -> None:
    batch, tokens, heads, dim = value.shape
    points = projected.shape[2] // (3 * heads * len(shapes))
    grid = (triton.cdiv(tokens, BLOCK), heads, batch)
    with torch.cuda.device_of(value):
        kernel[grid](
            value,
            _levels(shapes, value.device),
            projected,
            *outputs,
            tokens,
            heads,
            D=dim,
            LEVELS=len(shapes),
            POINTS=points,
            BLOCK_Q=BLOCK,
            BLOCK_D=triton.next_power_of_2(dim),
            BLOCK_S=triton.next_power_of_2(2 * len(shapes) * points),
            num_warps=WARPS,
        )


@constant
def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """Return (height, width, first token) of each level: int32 [levels, 3]."""
    starts = itertools.accumulate([0] + [height * width for height, width in shapes[:-1]])
    rows = [(*shape, start) for shape, start in zip(shapes, starts, strict=True)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@triton.jit
def _work(BLOCK_Q: tl.constexpr):
    """Return the image, the head, and the queries of this program."""
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return tl.program_id(2).to(tl.int64), tl.program_id(1), query


@triton.jit
def _level(levels, level):
    """Return the height, the width, and the first token of a level."""
    levels += 3 * level
    return tl.load(levels), tl.load(levels + 1), tl.load(levels + 2)


@triton.jit
def _centers(levels, query, LEVELS: tl.constexpr, dtype: tl.constexpr):
    """Return the normalized center, x and y, of each query's own pixel."""
    x = tl.zeros(query.shape, dtype)
    y = tl.zeros(query.shape, dtype)
    for level in range(LEVELS):
        height, width, start = _level(levels, level)
        pixel = query - start
        row = pixel // width
        is_here = (pixel >= 0) & (row < height)
        x = tl.where(is_here, ((pixel - row * width).to(dtype) + 0.5) / width, x)
        y = tl.where(is_here, (row.to(dtype) + 0.5) / height, y)
    return x, y


@triton.jit
def _exponentials(logits, mask, SAMPLES: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return exp(logit - maximum) of each sample [queries, BLOCK_S], and the maximum [queries].

    The columns from SAMPLES on are zero.
    """
    column = tl.arange(0, BLOCK_S)[None]
    is_sample = column < SAMPLES
    tile = tl.load(logits[:, None] + column, mask[:, None] & is_sample, 0)
    tile = tl.where(is_sample, tile, -float("inf"))
    top = tl.max(tile, 1)
    return tl.exp(tile - top[:, None]), top


@triton.jit
def _locate(center, offset, size, mask):
    """Return the pixel at or before a coordinate, the distance, and whether it is in [-1, size].

    The coordinate is the sum of `center` and the number that `offset` points to, in pixels.
    """
    pixel = center + tl.load(offset, mask, 0)
    is_inside = (pixel >= -1) & (pixel <= size)
    pixel = tl.where((pixel < -1) | (pixel > size), -1.0, pixel)  # NaN is kept
    before = tl.floor(pixel)
    return before.to(tl.int32), pixel - before, is_inside


@triton.jit
def _pixels(x, y, height, width, start, mask):
    """Return the tokens of pixels, and which of the pixels exist."""
    exists = (x >= 0) & (x < width) & (y >= 0) & (y < height) & mask
    return start + y * width + x, exists


@triton.jit
def _shares(dx, dy, right_share, lower_share):
    """Return the bilinear weights, in x and in y, of a corner of a cell."""
    x_share = tl.where(dx == 1, right_share, 1 - right_share)
    return x_share, tl.where(dy == 1, lower_share, 1 - lower_share)


@triton.jit
def _store(target, first, tile, mask, LENGTH: tl.constexpr):
    """Store the first columns of a tile [queries, columns] in rows that begin at `first`."""
    column = tl.arange(0, tile.shape[1])[None]
    tl.store(target + first[:, None] + column, tile, mask[:, None] & (column < LENGTH))


@triton.jit
def _deformable_forward(
    value, levels, projected, output, tokens, heads,
    D: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    SAMPLES: tl.constexpr = LEVELS * POINTS
    dtype: tl.constexpr = projected.dtype.element_ty
    image, head, query = _work(BLOCK_Q)
    mask = query < tokens
    channel = tl.arange(0, BLOCK_D)[None]
    is_channel = channel < D
    # Only the offsets of images need 64 bits.
    plane = (image * tokens * heads + head) * D
    value, output = value + plane, output + plane
    projected += image * tokens * (3 * heads * SAMPLES)
    offsets = projected + query * (3 * heads * SAMPLES) + head * (2 * SAMPLES)
    logits = projected + query * (3 * heads * SAMPLES) + (2 * heads + head) * SAMPLES
    exponentials, top = _exponentials(logits, mask, SAMPLES, BLOCK_S)
    center_x, center_y = _centers(levels, query, LEVELS, dtype)
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype)
    for level in range(LEVELS):
        height, width, start = _level(levels, level)
        x, y = center_x * width - 0.5, center_y * height - 0.5
        for point in range(POINTS):
            sample = level * POINTS + point
            weight = tl.exp(tl.load(logits + sample, mask, 0) - top)
            left, right_share, _ = _locate(x, offsets + 2 * sample, width, mask)
            above, lower_share, _ = _locate(y, offsets + 2 * sample + 1, height, mask)
            for corner in tl.static_range(4):
                dx, dy = corner % 2, corner // 2
                x_share, y_share = _shares(dx, dy, right_share, lower_share)
                pixel, exists = _pixels(left + dx, above + dy, height, width, start, mask)
                tile, exist = pixel[:, None] * (heads * D) + channel, exists[:, None] & is_channel
                corner_value = tl.load(value + tile, exist, 0).to(dtype)
                total += (x_share * y_share * weight)[:, None] * corner_value
    total /= tl.sum(exponentials, 1)[:, None]
    own = query[:, None] * (heads * D) + channel
    tl.store(output + own, total, mask[:, None] & is_channel)


@triton.jit
def _of_cell(
    value, of_value, outer, weight, left, above, right_share, lower_share,
    height, width, start, mask, channel, is_channel, stride,
):  # fmt: skip
    """Add the gradients of a cell's corners; return those of the sample's weight and offset."""
    sampled = tl.zeros(weight.shape, outer.dtype)
    slope_x = tl.zeros(weight.shape, outer.dtype)
    slope_y = tl.zeros(weight.shape, outer.dtype)
    for corner in tl.static_range(4):
        dx, dy = corner % 2, corner // 2
        x_share, y_share = _shares(dx, dy, right_share, lower_share)
        pixel, exists = _pixels(left + dx, above + dy, height, width, start, mask)
        tile, exist = pixel[:, None] * stride + channel, exists[:, None] & is_channel
        dot = tl.sum(tl.load(value + tile, exist, 0).to(outer.dtype) * outer, 1)
        sampled += x_share * y_share * dot
        slope_x += tl.where(dx == 1, dot, -dot) * y_share
        slope_y += tl.where(dy == 1, dot, -dot) * x_share
        share = (x_share * y_share * weight)[:, None]
        tl.atomic_add(of_value + tile, share * outer, exist, sem="relaxed")
    return sampled, slope_x * weight, slope_y * weight


@triton.jit
def _deformable_backward(
    value, levels, projected, gradient, of_value, of_projected, tokens, heads,
    D: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    SAMPLES: tl.constexpr = LEVELS * POINTS
    dtype: tl.constexpr = projected.dtype.element_ty
    image, head, query = _work(BLOCK_Q)
    mask = query < tokens
    channel = tl.arange(0, BLOCK_D)[None]
    is_channel = channel < D
    # Only the offsets of images need 64 bits.
    plane = (image * tokens * heads + head) * D
    value, of_value, gradient = value + plane, of_value + plane, gradient + plane
    projected += image * tokens * (3 * heads * SAMPLES)
    of_projected += image * tokens * (3 * heads * SAMPLES)
    first_offset = query * (3 * heads * SAMPLES) + head * (2 * SAMPLES)
    first_logit = query * (3 * heads * SAMPLES) + (2 * heads + head) * SAMPLES
    offsets, logits = projected + first_offset, projected + first_logit
    exponentials, top = _exponentials(logits, mask, SAMPLES, BLOCK_S)
    total = tl.sum(exponentials, 1)
    center_x, center_y = _centers(levels, query, LEVELS, dtype)
    own = query[:, None] * (heads * D) + channel
    outer = tl.load(gradient + own, mask[:, None] & is_channel, 0).to(dtype)
    # The gradients of the weights and the offsets are collected in tiles, whose rows are contiguous
    # in memory, and stored once.
    column = tl.arange(0, BLOCK_S)[None]
    of_weight = tl.zeros((BLOCK_Q, BLOCK_S), dtype)
    of_offset = tl.zeros((BLOCK_Q, BLOCK_S), dtype)
    for level in range(LEVELS):
        height, width, start = _level(levels, level)
        x, y = center_x * width - 0.5, center_y * height - 0.5
        for point in range(POINTS):
            sample = level * POINTS + point
            weight = tl.exp(tl.load(logits + sample, mask, 0) - top) / total
            left, right_share, x_inside = _locate(x, offsets + 2 * sample, width, mask)
            above, lower_share, y_inside = _locate(y, offsets + 2 * sample + 1, height, mask)
            sampled, slope_x, slope_y = _of_cell(
                value, of_value, outer, weight, left, above, right_share, lower_share,
                height, width, start, mask, channel, is_channel, heads * D,
            )  # fmt: skip
            slope_x = tl.where(x_inside, slope_x, 0)[:, None]
            slope_y = tl.where(y_inside, slope_y, 0)[:, None]
            of_weight = tl.where(column == sample, sampled[:, None], of_weight)
            of_offset = tl.where(column == 2 * sample, slope_x, of_offset)
            of_offset = tl.where(column == 2 * sample + 1, slope_y, of_offset)
    # The gradient of softmax. A second read of the logits takes fewer registers than keeping them.
    exponentials, top = _exponentials(logits, mask, SAMPLES, BLOCK_S)
    weights = exponentials / total[:, None]
    of_logit = weights * (of_weight - tl.sum(weights * of_weight, 1)[:, None])
    _store(of_projected, first_logit, of_logit, mask, SAMPLES)
    _store(of_projected, first_offset, of_offset, mask, 2 * SAMPLES)
