"""Deformable attention from gathers of rows, for exported programs.

The reference calls `grid_sample`, which is GridSample in ONNX, and TensorRT computes GridSample
wrongly without a message.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from model.position import level_sizes


def forward(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Return what `model.deformable_attention.deformable_attention` returns.

    The arguments are the same, and the sizes may be symbols of `torch.export`. The pixels at one
    corner of all points are one gather of rows of D values.
    """
    batch, tokens, heads, dim = value.shape
    device, queries = value.device, locations.shape[1]
    width, height = level_sizes(tuple(shapes), device, torch.long)[:, :, None].unbind(1)
    area = width * height  # [levels, 1]
    earlier = torch.ones(len(shapes), len(shapes), dtype=torch.long, device=device).tril(-1)
    pixels = (earlier * area.T).sum(1, keepdim=True)  # of the levels before: [levels, 1]
    first = torch.arange(batch, device=device)[:, None, None, None, None] * tokens + pixels
    head = torch.arange(heads, device=device)[:, None, None]
    rows = value.to(locations.dtype).reshape(-1, dim)  # [B·N·heads, D]
    columns, lines = (_neighbors(locations[..., i], size) for i, size in enumerate((width, height)))
    terms = []
    for line, line_share in lines:
        for column, column_share in columns:
            row = (first + line * width + column) * heads + head
            samples = rows.index_select(0, row.flatten()).unflatten(0, (batch, queries, heads, -1))
            share = line_share * column_share * weights  # [B, queries, heads, levels, points]
            terms.append((samples * share.flatten(3)[..., None]).sum(3))
    return functools.reduce(torch.add, terms).flatten(2).to(value.dtype)


def _neighbors(position: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the pixels before and after each position along one axis, and their shares.

    The share of a pixel outside of the level is 0, and its index is that of a pixel inside.
    """
    position = position * size - 0.5
    before = position.floor()
    after_share = position - before
    return [
        (index.long().clamp(min=0).minimum(size - 1), share * ((index >= 0) & (index < size)))
        for index, share in ((before, 1 - after_share), (before + 1, after_share))
    ]
