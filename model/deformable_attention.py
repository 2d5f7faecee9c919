"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3)."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import REFERENCE, deformable_cpu, deformable_gather, implementation

Shapes = Sequence[tuple[int, int]]


def deformable_attention(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """Return weighted sums of `value`, bilinearly sampled at a few points of every level.

    On a CPU this is the operator `m2f::deformable_attention`. It saves its three
    inputs for backward and nothing else, and its gradients cannot be differentiated again.

    Args:
        value: [B, N, heads, D]; the levels are concatenated along N = Σ H·W.
        shapes: (H, W) of each level.
        locations: float32 or float64 [B, queries, heads, levels, points, 2], x first, normalized so
            that pixel i of n has its center at (i + 0.5) / n. Points outside [0, 1] read zeros.
        weights: [B, queries, heads, levels, points] in the dtype of `locations`.

    Returns:
        [B, queries, heads·D] in the dtype of `value`, summed in the dtype of `locations`.

    Raises:
        ValueError: The shapes or the dtypes do not fit together.
    """
    _check(value, shapes, locations, weights)
    chosen = implementation("deformable_attention", value.device)
    if chosen == REFERENCE:
        return reference(value, shapes, locations, weights)
    if chosen == "gather":
        return deformable_gather.forward(value, shapes, locations, weights)
    sizes = [side for shape in shapes for side in shape]
    return torch.ops.m2f.deformable_attention(value, sizes, locations, weights)


def reference(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return the same as `deformable_attention`, in plain torch.

    It runs on every device and has derivatives of every order, but it keeps all samples
    [B·heads, D, points, queries] of each level for backward.
    """
    batch, _, heads, _ = value.shape
    # Points come before queries, so that the sum over points runs along long contiguous rows.
    grids = (2 * locations - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # [B·heads, l, p, q, 2]
    weights = weights.permute(0, 2, 3, 4, 1).flatten(0, 1)  # [B·heads, l, p, q]
    planes = value.to(locations.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # [B·heads, D, N]
    terms = []
    for level, plane in enumerate(planes.split([h * w for h, w in shapes], dim=2)):
        plane = plane.unflatten(2, shapes[level])  # [B·heads, D, H, W]
        sampled = F.grid_sample(plane, grids[:, level], align_corners=False)  # [B·heads, D, p, q]
        terms.append((sampled * weights[:, level, None]).sum(2))
    output = functools.reduce(torch.add, terms)
    output = output.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)
    return output.to(value.dtype)


def _check(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Raise ValueError if the shapes or the dtypes do not fit together."""
    batch, tokens, heads, _ = value.shape
    if tokens != sum(height * width for height, width in shapes):
        raise ValueError(f"value has {tokens} tokens, but the levels have {list(shapes)}")
    queries, points = locations.shape[1], locations.shape[4]
    expected = (batch, queries, heads, len(shapes), points)
    if locations.shape != (*expected, 2) or weights.shape != expected:
        given = f"locations {list(locations.shape)}, weights {list(weights.shape)}"
        raise ValueError(f"{given}: the values need {[*expected, 2]}, {list(expected)}")
    if locations.dtype not in (torch.float32, torch.float64) or weights.dtype != locations.dtype:
        dtypes = f"locations {locations.dtype}, weights {weights.dtype}"
        raise ValueError(f"{dtypes}: both must be float32 or both float64")


@torch.library.custom_op("m2f::deformable_attention", mutates_args=(), device_types="cpu")
def _forward(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return deformable_cpu.forward(value, pairs(sizes), locations, weights)


@torch.library.custom_op("m2f::deformable_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return deformable_cpu.backward(gradient, value, pairs(sizes), locations, weights)


@_forward.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@_backward.register_fake
def _(gradient: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor):
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = _backward(gradient, value, ctx.sizes, locations, weights)
    return of_value, None, of_locations, of_weights


_forward.register_autograd(_differentiate, setup_context=_save)
for operator in (_forward, _backward):  # called under autocast, the operator computes in float32
    operator.register_autocast("cpu", torch.float32)


def pairs(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of each level from the flat list that an operator takes."""
    return tuple(zip(sizes[::2], sizes[1::2], strict=True))
