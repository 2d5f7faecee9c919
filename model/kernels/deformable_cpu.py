"""Deformable attention on a CPU, from kernels that torch and scipy bring: no compiler is needed.

The samples of one image are a sparse matrix: a row for each query and head, whose entries are the
four corners of each sample's cell (bilinear share times weight). The output is that matrix times
the values (`embedding_bag`), the gradient of the values is its transpose times the output's
gradient (kept by columns, so nothing is sorted), and the gradients of its entries are dot products
(`sampled_addmm`). Nothing of size samples · D is ever made.
"""

import functools
import itertools
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from scipy.sparse import csc_array
from torch import Tensor

from model.position import level_sizes

Shapes = tuple[tuple[int, int], ...]

with warnings.catch_warnings():  # "Sparse CSR tensor support is in beta", said once a process
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    table = _table(value, shapes, locations.dtype)
    output = value.new_empty(*locations.shape[:3], value.shape[3])
    for image, rows in enumerate(table):
        cells = _Cells(locations[image], shapes, rows.shape[1])
        output[image] = F.embedding_bag(
            cells.corners.flatten(2).flatten(0, 1),
            rows.flatten(0, 1),
            mode="sum",
            per_sample_weights=cells.entries(weights[image].flatten(1)).flatten(2).flatten(0, 1),
        ).view_as(output[image])
    return output.flatten(2)


def backward(
    gradient: Tensor, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    table = _table(value, shapes, locations.dtype)
    gradient = gradient.unflatten(2, (value.shape[2], -1)).to(locations.dtype)
    of_table, of_locations, of_weights = (x.new_empty(x.shape) for x in (table, locations, weights))
    row_length = 4 * weights[0, 0, 0].numel()
    threads = torch.get_num_threads()
    for image, rows in enumerate(table.flatten(1, 2)):
        cells = _Cells(locations[image], shapes, table.shape[2])
        weight = weights[image].flatten(1)
        columns, entries = cells.corners.flatten(), cells.entries(weight).flatten()
        starts = torch.arange(0, len(columns) + 1, row_length, dtype=torch.int32)
        outer = gradient[image].flatten(0, 1).contiguous()  # [queries·heads, D]
        size = len(outer), len(rows)
        transposed = csc_array((entries.numpy(), columns.numpy(), starts.numpy()), size[::-1])
        parts = [part.contiguous().numpy() for part in outer.chunk(threads, 1)]
        scattered = [torch.from_numpy(x) for x in _pool(threads).map(transposed.dot, parts)]
        torch.cat(scattered, 1, out=of_table[image].flatten(0, 1))
        matrix = torch.sparse_csr_tensor(starts, columns, entries, size, check_invariants=False)
        # in place of the entries, which nothing else needs
        dots = torch.sparse.sampled_addmm(matrix, outer, rows.t(), beta=0, out=matrix).values()
        sampled, slope = cells.interpolate(dots.view_as(cells.corners))
        of_weights[image] = sampled.view_as(of_weights[image])
        of_locations[image] = (slope * weight).movedim(0, 2).view_as(of_locations[image])
    planes = [plane.flatten(2, 3) for plane in _planes(of_table, shapes)]
    of_value = value.new_empty(value.shape).copy_(torch.cat(planes, 2).transpose(1, 2))
    return of_value, of_locations, of_weights


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """For scipy's product, which runs in one thread; kept, since new threads get fresh memory."""
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)


class _Cells:
    """Where the samples of one image fall: the cell of four pixels around each, and where in it.

    Args:
        locations: [queries, heads, levels, points, 2]; `samples` below are levels · points.
        rows: rows of the table for each head.
    """

    def __init__(self, locations: Tensor, shapes: Shapes, rows: int) -> None:
        _, heads, _, points, _ = locations.shape
        stride = _stride(shapes)
        sizes = level_sizes(shapes, locations.device, locations.dtype).t()  # [2, levels]
        self.size = sizes.repeat_interleave(points, 1).repeat(1, heads)[:, None]
        above = itertools.accumulate([0] + [height + 2 for height, _ in shapes[:-1]])
        starts = torch.tensor(list(above), dtype=torch.int32).repeat_interleave(points) * stride
        starts = starts + torch.arange(0, rows * heads, rows, dtype=torch.int32)[:, None]
        # in pixels from the center of the ring of zeros: 0 and n + 1 are the last to read zeros
        planes = (
            locations.flatten(1, 3).permute(2, 0, 1).contiguous()
        )  # [2, queries, heads·samples]
        pixels = planes.mul_(self.size).add_(0.5)
        inside = torch.minimum(pixels.clamp(min=0), self.size + 1)
        corner = torch.minimum(inside.int(), self.size.int()).clamp_(min=0)  # of NaN: any
        self.is_inside = pixels == inside
        self.fraction = inside.sub_(corner)
        first = torch.add(corner[0], corner[1], alpha=stride).add_(starts.flatten())
        shifts = torch.tensor([0, 1, stride, stride + 1], dtype=torch.int32)[:, None]
        # [queries, heads, 4, samples], rows of the table
        self.corners = first.unflatten(1, (heads, 1, -1)) + shifts

    def entries(self, weight: Tensor) -> Tensor:
        """Share of each corner times `weight` [queries, heads·samples], shaped as `corners`."""
        x, y = self.fraction
        right = weight * x
        left = weight - right
        lower_left, lower_right = left * y, right * y
        shares = left - lower_left, right - lower_right, lower_left, lower_right
        heads = self.corners.shape[1]
        return torch.stack([share.unflatten(1, (heads, -1)) for share in shares], 2)

    def interpolate(self, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Values between `corners` (shaped as ours) and their slopes by location [2, …]."""
        x, y = self.fraction
        planes = corners.movedim(2, 0).contiguous().flatten(2)
        upper_left, upper_right, lower_left, lower_right = planes
        upper = torch.lerp(upper_left, upper_right, x)
        lower = torch.lerp(lower_left, lower_right, x)
        along_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, y)
        slope = torch.stack((along_x, lower - upper)).mul_(self.size).mul_(self.is_inside)
        return torch.lerp(upper, lower, y), slope


# The table of one head has zeros around every level, and rows of one length for all levels: the
# corners of a cell that begins in row i are the rows i, i + 1, i + stride, i + stride + 1.


def _stride(shapes: Shapes) -> int:
    return max(width for _, width in shapes) + 1


def _table(value: Tensor, shapes: Shapes, dtype: torch.dtype) -> Tensor:
    """[B, heads, rows, D]."""
    batch, _, heads, dim = value.shape
    rows = sum(height + 2 for height, _ in shapes) * _stride(shapes) + 1
    table = value.new_zeros(batch, heads, rows, dim, dtype=dtype)
    levels = value.transpose(1, 2).split([height * width for height, width in shapes], 2)
    for plane, level, shape in zip(_planes(table, shapes), levels, shapes, strict=True):
        plane.copy_(level.unflatten(2, shape))
    return table


def _planes(table: Tensor, shapes: Shapes) -> list[Tensor]:
    """The pixels of each level in a table: views [B, heads, H, W, D]."""
    levels = table[:, :, :-1].unflatten(2, (-1, _stride(shapes)))
    levels = levels.split([height + 2 for height, _ in shapes], 2)
    return [
        level[:, :, 1:-1, 1 : width + 1] for level, (_, width) in zip(levels, shapes, strict=True)
    ]
