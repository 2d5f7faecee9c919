"""Deformable attention of every token to points around its own pixel, from raw projections."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.deformable_attention import Shapes, deformable_attention, pairs
from model.kernels import REFERENCE, implementation
from model.position import level_sizes, pixel_centers


def deformable_self_attention(value: Tensor, shapes: Shapes, projected: Tensor) -> Tensor:
    """Return `deformable_attention` at the `sample_points` of projections.

    With a kernel this is the operator `m2f::deformable_self_attention`, which makes no tensor of
    points or weights. It saves its two inputs for backward and nothing else, and its gradients
    cannot be differentiated again.

    Args:
        value: [B, N, heads, D]; the levels are concatenated along N = Σ H·W.
        shapes: (H, W) of each level.
        projected: float32 or float64 [B, N, 3·samples] with samples = heads·levels·points. The
            first 2·samples are offsets and the last are logits, as `sample_points` takes them.

    Returns:
        [B, N, heads·D] in the dtype of `value`, summed in the dtype of `projected`.

    Raises:
        ValueError: The shapes or the dtypes do not fit together.
    """
    _check(value, shapes, projected)
    if implementation("deformable_self_attention", value.device) == REFERENCE:
        offsets, logits = projected.tensor_split([projected.shape[2] // 3 * 2], 2)
        centers = pixel_centers(tuple(shapes), value.device, projected.dtype)
        points = sample_points(offsets, logits, centers, shapes, value.shape[2])
        return deformable_attention(value, shapes, *points)
    sizes = [side for shape in shapes for side in shape]
    return torch.ops.m2f.deformable_self_attention(value, sizes, projected)


def sample_points(
    offsets: Tensor, logits: Tensor, centers: Tensor, shapes: Shapes, heads: int
) -> tuple[Tensor, Tensor]:
    """Return the locations and the weights that `deformable_attention` takes.

    Args:
        offsets: [B, N, samples·2] with samples = heads·levels·points: the distance, x first, of
            each sample from the center of the token's pixel, in pixels of the sample's level.
        logits: [B, N, samples]; softmax over the levels and points of a head gives the weights.
        centers: `pixel_centers` of the levels.
        shapes: (H, W) of each level.
        heads: Number of heads.
    """
    levels, points = len(shapes), logits.shape[2] // (heads * len(shapes))
    # Sizes and centers are repeated for all samples: broadcasting over the last dimension, whose
    # size is 2, is slow.
    sizes = level_sizes(tuple(shapes), offsets.device, offsets.dtype)  # [levels, 2]
    sizes = sizes.repeat_interleave(points, 0).flatten().repeat(heads)
    locations = centers.repeat(1, heads * levels * points) + offsets / sizes
    weights = logits.transpose(1, 2)  # softmax is faster along long rows
    weights = weights.unflatten(1, (heads, levels * points)).softmax(2)
    weights = weights.unflatten(2, (levels, points)).permute(0, 4, 1, 2, 3)
    return locations.unflatten(2, (heads, levels, points, 2)), weights


def _check(value: Tensor, shapes: Shapes, projected: Tensor) -> None:
    """Raise ValueError if the shapes or the dtypes do not fit together."""
    batch, tokens, heads, _ = value.shape
    if tokens != sum(height * width for height, width in shapes):
        raise ValueError(f"value has {tokens} tokens, but the levels have {list(shapes)}")
    unit = 3 * heads * len(shapes)
    if projected.shape[:2] != (batch, tokens) or projected.shape[2] % unit:
        given = f"projections {list(projected.shape)}"
        raise ValueError(f"{given}: the values need [{batch}, {tokens}, points * {unit}]")
    if projected.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"projections {projected.dtype}: they must be float32 or float64")


# Triton is imported by the first call: it is missing on machines without a GPU.
@torch.library.custom_op("m2f::deformable_self_attention", mutates_args=(), device_types="cuda")
def _forward(value: Tensor, sizes: Sequence[int], projected: Tensor) -> Tensor:
    from model.kernels import deformable_triton

    return deformable_triton.forward(value, pairs(sizes), projected)


@torch.library.custom_op(
    "m2f::deformable_self_attention_backward", mutates_args=(), device_types="cuda"
)
def _backward(
    gradient: Tensor, value: Tensor, sizes: Sequence[int], projected: Tensor
) -> tuple[Tensor, Tensor]:
    from model.kernels import deformable_triton

    return deformable_triton.backward(gradient, value, pairs(sizes), projected)


@_forward.register_fake
def _(value: Tensor, sizes: Sequence[int], projected: Tensor) -> Tensor:
    return value.new_empty(*value.shape[:2], value.shape[2] * value.shape[3])


@_backward.register_fake
def _(gradient: Tensor, value: Tensor, sizes: Sequence[int], projected: Tensor):
    return tuple(x.new_empty(x.shape) for x in (value, projected))


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    value, ctx.sizes, projected = inputs
    ctx.save_for_backward(value, projected)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
    value, projected = ctx.saved_tensors
    of_value, of_projected = _backward(gradient, value, ctx.sizes, projected)
    return of_value, None, of_projected


_forward.register_autograd(_differentiate, setup_context=_save)
for operator in (_forward, _backward):  # called under autocast, the operator computes in float32
    operator.register_autocast("cuda", torch.float32)
