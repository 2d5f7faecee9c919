"""Deformable attention on a CPU, built from kernels of torch and scipy; needs no compiler.

The samples of one image form a sparse matrix with a row for each query and head, and a column for
each head and pixel. The entries of a row are the four corners of each sample's cell, as bilinear
share times weight.

- The output is the matrix times the values: `embedding_bag`.
- The gradient of the values is the transposed matrix times the gradient of the output. Scipy's
  `csc_array` reads the rows of the matrix as the columns of the transpose, without sorting.
- The gradients of the entries of the matrix are dot products: `sampled_addmm`.

No array of the size samples · D is ever made. One layer of R50 at 512 pixels takes 0.030 s forward
and backward, 0.14 times as long as the `grid_sample` form of transformers (2 threads).
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

with warnings.catch_warnings():  # torch warns once that sparse CSR is in beta: do it here
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def forward(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return `model.deformable_attention` of the arguments."""
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
    """Return the gradients of value, locations, and weights, given that of the output.

    Forward does not save the matrix, because it is larger than the inputs. It is built again here,
    image by image.
    """
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
        # Read as columns, the rows of the matrix form its transpose at no cost. scipy's product
        # runs in one thread, so each thread takes a share of the channels.
        transposed = csc_array((entries.numpy(), columns.numpy(), starts.numpy()), size[::-1])
        parts = [part.contiguous().numpy() for part in outer.chunk(threads, 1)]
        scattered = [torch.from_numpy(x) for x in _pool(threads).map(transposed.dot, parts)]
        torch.cat(scattered, 1, out=of_table[image].flatten(0, 1))
        matrix = torch.sparse_csr_tensor(starts, columns, entries, size, check_invariants=False)
        # The dot products overwrite the entries, which nothing else needs.
        dots = torch.sparse.sampled_addmm(matrix, outer, rows.t(), beta=0, out=matrix).values()
        sampled, slope = cells.interpolate(dots.view_as(cells.corners))
        of_weights[image] = sampled.view_as(of_weights[image])
        of_locations[image] = (slope * weight).movedim(0, 2).view_as(of_locations[image])
    planes = [plane.flatten(2, 3) for plane in _planes(of_table, shapes)]
    of_value = value.new_empty(value.shape).copy_(torch.cat(planes, 2).transpose(1, 2))
    return of_value, of_locations, of_weights


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads for scipy's product; reuse avoids new memory for every new thread."""
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)


class _Cells:
    """The cells of four pixels that the samples of one image fall into.

    Every level is surrounded by a ring of zeros (see `_table`), so a sample outside is not
    a special case: it is clamped to the ring, reads zeros, and gets the slope zero.

    Args:
        locations: [queries, heads, levels, points, 2]; `samples` below is levels · points.
        shapes: (H, W) of each level.
        rows: Number of rows of the table for each head.

    Attributes:
        corners: int32 [queries, heads, 4, samples], the rows of the table that hold the corners:
            upper left, upper right, lower left, lower right.
        fraction: [2, queries, heads·samples], x and y within the cell.
        is_inside: bool, shaped as `fraction`, whether the coordinate needed no clamping.
        size: [2, 1, heads·samples], width and height of the level.
    """

    def __init__(self, locations: Tensor, shapes: Shapes, rows: int) -> None:
        _, heads, _, points, _ = locations.shape
        stride = _stride(shapes)
        sizes = level_sizes(shapes, locations.device, locations.dtype).t()  # [2, levels]
        self.size = sizes.repeat_interleave(points, 1).repeat(1, heads)[:, None]
        above = itertools.accumulate([0] + [height + 2 for height, _ in shapes[:-1]])
        starts = torch.tensor(list(above), dtype=torch.int32).repeat_interleave(points) * stride
        starts = starts + torch.arange(0, rows * heads, rows, dtype=torch.int32)[:, None]
        planes = locations.flatten(1, 3).permute(2, 0, 1).contiguous()
        # Pixel 0 and pixel n + 1 are the ring of zeros: from there outwards, only zeros are read.
        pixels = planes.mul_(self.size).add_(0.5)
        inside = torch.minimum(pixels.clamp(min=0), self.size + 1)
        # Without the clamp, NaN could give an index outside the table.
        corner = torch.minimum(inside.int(), self.size.int()).clamp_(min=0)
        self.is_inside = pixels == inside
        self.fraction = inside.sub_(corner)
        first = torch.add(corner[0], corner[1], alpha=stride).add_(starts.flatten())
        shifts = torch.tensor([0, 1, stride, stride + 1], dtype=torch.int32)[:, None]
        self.corners = first.unflatten(1, (heads, 1, -1)) + shifts

    def entries(self, weight: Tensor) -> Tensor:
        """Return the share of each corner times `weight` [queries, heads·samples].

        The result has the shape of `corners`. Three products give all four shares.
        """
        x, y = self.fraction
        right = weight * x
        left = weight - right
        lower_left, lower_right = left * y, right * y
        shares = left - lower_left, right - lower_right, lower_left, lower_right
        heads = self.corners.shape[1]
        return torch.stack([share.unflatten(1, (heads, -1)) for share in shares], 2)

    def interpolate(self, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolate between values at the corners.

        Args:
            corners: Values, of the shape of `self.corners`.

        Returns:
            The interpolated values [queries, heads·samples], and their derivatives with respect to
            the location [2, queries, heads·samples].
        """
        x, y = self.fraction
        planes = corners.movedim(2, 0).contiguous().flatten(2)
        upper_left, upper_right, lower_left, lower_right = planes
        upper = torch.lerp(upper_left, upper_right, x)
        lower = torch.lerp(lower_left, lower_right, x)
        along_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, y)
        slope = torch.stack((along_x, lower - upper)).mul_(self.size).mul_(self.is_inside)
        return torch.lerp(upper, lower, y), slope


def _stride(shapes: Shapes) -> int:
    """Return the length of a row of pixels in a table: the width of the widest level plus one."""
    return max(width for _, width in shapes) + 1


def _table(value: Tensor, shapes: Shapes, dtype: torch.dtype) -> Tensor:
    """Return the values as a table [B, heads, rows, D] with a ring of zeros around every level.

    In all levels a row of pixels takes `stride` table rows. A cell whose upper left corner is table
    row i therefore has the corners i, i + 1, i + stride, i + stride + 1 in every level, and the
    zero at the end of a row of pixels is also the one before the next.
    """
    batch, _, heads, dim = value.shape
    rows = sum(height + 2 for height, _ in shapes) * _stride(shapes) + 1
    table = value.new_zeros(batch, heads, rows, dim, dtype=dtype)
    levels = value.transpose(1, 2).split([height * width for height, width in shapes], 2)
    for plane, level, shape in zip(_planes(table, shapes), levels, shapes, strict=True):
        plane.copy_(level.unflatten(2, shape))
    return table


def _planes(table: Tensor, shapes: Shapes) -> list[Tensor]:
    """Return the pixels of each level in a table, as views [B, heads, H, W, D]."""
    levels = table[:, :, :-1].unflatten(2, (-1, _stride(shapes)))
    levels = levels.split([height + 2 for height, _ in shapes], 2)
    return [
        level[:, :, 1:-1, 1 : width + 1] for level, (_, width) in zip(levels, shapes, strict=True)
    ]
