"""Deformable attention on a GPU, in Triton: one pass forward and one backward.

A program handles BLOCK queries of one head; for each sample it reads four tiles [BLOCK, D].
Sums have the dtype of the locations, whatever the dtype of the values. The gradients of the values
are added atomically, so their last bits depend on the order in which programs run.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.position import constant

Shapes = tuple[tuple[int, int], ...]

BLOCK = 16  # queries of one program


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return `model.deformable_attention` of the arguments."""
    value, locations, weights = (x.contiguous() for x in (value, locations, weights))
    output = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
    _launch(_forward, value, shapes, locations, weights, output)
    return output


def backward(
    gradient: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations, and weights, given that of the output."""
    gradient, value, locations, weights = (
        x.contiguous() for x in (gradient, value, locations, weights)
    )
    of_value = torch.zeros_like(value, dtype=locations.dtype)
    of_locations, of_weights = torch.empty_like(locations), torch.empty_like(weights)
    outputs = (gradient, of_value, of_locations, of_weights)
    _launch(_backward, value, shapes, locations, weights, *outputs)
    return of_value.to(value.dtype), of_locations, of_weights


def _launch(
    kernel: triton.JITFunction,
    value: Tensor,
    shapes: Shapes,
    locations: Tensor,
    weights: Tensor,
    *outputs: Tensor,
) -> None:
    batch, tokens, heads, dim = value.shape
    queries, _, levels, points = weights.shape[1:]
    grid = (triton.cdiv(queries, BLOCK), batch * heads)
    with torch.cuda.device_of(value):
        kernel[grid](
            value,
            _levels(shapes, value.device),
            locations,
            weights,
            *outputs,
            tokens,
            queries,
            heads,
            D=dim,
            LEVELS=levels,
            POINTS=points,
            BLOCK_Q=BLOCK,
            BLOCK_D=triton.next_power_of_2(dim),
        )


@constant
def _levels(shapes: Shapes, device: torch.device) -> Tensor:
    """Return (height, width, first token) of each level: int32 [levels, 3]."""
    starts = itertools.accumulate([0] + [height * width for height, width in shapes[:-1]])
    rows = [(*shape, start) for shape, start in zip(shapes, starts, strict=True)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@triton.jit
def _locate(coordinate, size, mask):
    """Return the pixel at or before a coordinate, the distance, and whether it is in [-1, size]."""
    pixel = tl.load(coordinate, mask=mask, other=0) * size - 0.5
    is_inside = (pixel >= -1) & (pixel <= size)
    pixel = tl.where((pixel < -1) | (pixel > size), -1.0, pixel)  # NaN is kept
    before = tl.floor(pixel)
    return before.to(tl.int32), pixel - before, is_inside


@triton.jit
def _pixels(x, y, height, width, start, stride, mask):
    """Return the offsets of pixels from the first token, and which of the pixels exist."""
    exists = (x >= 0) & (x < width) & (y >= 0) & (y < height) & mask
    return (start + y * width + x) * stride, exists


@triton.jit
def _forward(
    value, levels, locations, weights, output, tokens, queries, heads,
    D: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row = (image * queries + query) * heads + head
    mask = query < queries
    channel = tl.arange(0, BLOCK_D)[None]
    is_channel = channel < D
    plane = value + (image * tokens * heads + head) * D + channel
    total = tl.zeros((BLOCK_Q, BLOCK_D), dtype=locations.dtype.element_ty)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + sample, mask=mask, other=0)
            left, right_share, _ = _locate(locations + 2 * sample, width, mask)
            top, lower_share, _ = _locate(locations + 2 * sample + 1, height, mask)
            for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]  # triton is untyped
                dx, dy = corner % 2, corner // 2
                share = tl.where(dx == 1, right_share, 1 - right_share)
                share *= tl.where(dy == 1, lower_share, 1 - lower_share)
                offset, exists = _pixels(left + dx, top + dy, height, width, start, heads * D, mask)
                pixel = tl.load(plane + offset[:, None], exists[:, None] & is_channel, 0)
                total += (share * weight)[:, None] * pixel.to(total.dtype)
    tl.store(output + row[:, None] * D + channel, total, mask[:, None] & is_channel)


@triton.jit
def _backward(
    value, levels, locations, weights, gradient, of_value, of_locations, of_weights,
    tokens, queries, heads,
    D: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row = (image * queries + query) * heads + head
    mask = query < queries
    channel = tl.arange(0, BLOCK_D)[None]
    is_channel = channel < D
    first = (image * tokens * heads + head) * D + channel
    outer = tl.load(gradient + row[:, None] * D + channel, mask[:, None] & is_channel, 0)
    outer = outer.to(locations.dtype.element_ty)
    for level in range(LEVELS):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            sample = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + sample, mask=mask, other=0)
            left, right_share, x_inside = _locate(locations + 2 * sample, width, mask)
            top, lower_share, y_inside = _locate(locations + 2 * sample + 1, height, mask)
            sampled = tl.zeros((BLOCK_Q,), dtype=outer.dtype)
            slope_x = tl.zeros((BLOCK_Q,), dtype=outer.dtype)
            slope_y = tl.zeros((BLOCK_Q,), dtype=outer.dtype)
            for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]  # triton is untyped
                dx, dy = corner % 2, corner // 2
                x_share = tl.where(dx == 1, right_share, 1 - right_share)
                y_share = tl.where(dy == 1, lower_share, 1 - lower_share)
                offset, exists = _pixels(left + dx, top + dy, height, width, start, heads * D, mask)
                offsets, exist = first + offset[:, None], exists[:, None] & is_channel
                dot = tl.sum(tl.load(value + offsets, exist, 0).to(outer.dtype) * outer, 1)
                sampled += x_share * y_share * dot
                slope_x += tl.where(dx == 1, dot, -dot) * y_share  # pyright: ignore[reportOperatorIssue]  # triton is untyped
                slope_y += tl.where(dy == 1, dot, -dot) * x_share  # pyright: ignore[reportOperatorIssue]  # triton is untyped
                tl.atomic_add(
                    of_value + offsets, (x_share * y_share * weight)[:, None] * outer, exist,
                    sem="relaxed",
                )  # fmt: skip
            tl.store(of_weights + sample, sampled, mask)
            slope_x = tl.where(x_inside, slope_x * weight * width, 0)
            slope_y = tl.where(y_inside, slope_y * weight * height, 0)
            tl.store(of_locations + 2 * sample, slope_x, mask)
            tl.store(of_locations + 2 * sample + 1, slope_y, mask)
