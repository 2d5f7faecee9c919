"""Measure deformable attention, forward and backward, against the grid_sample form of transformers.

Both start from the values, offsets, and logits of an encoder layer for images of 512 and 1024
pixels: one image on a CPU, eight on a GPU. Samples have their initial offsets plus noise of
a standard deviation of 1 pixel.
"""

import torch
from rich.console import Console
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from jobs.bench import alternate, row
from model.deformable_self_attention import deformable_self_attention
from model.pixel_decoder import LEVELS, DeformableSelfAttention, PixelDecoderSettings
from model.position import level_sizes, pixel_centers

DIM = 256
SIZES = (512, 1024)

Shapes = tuple[tuple[int, int], ...]


def rows() -> list[dict]:
    """Return the seconds at each size; on a GPU the target is a third of the peer's time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    measured = []
    for size in SIZES:
        shapes, inputs = case(size, 8 if on_gpu else 1, device)
        with Console(stderr=True).status(f"attention at {size} pixels, {device.type}"):
            seconds = alternate(
                {
                    "ours": lambda s=shapes, i=inputs: step(deformable_self_attention, s, i),
                    "peer": lambda s=shapes, i=inputs: step(peer, s, i),
                }
            )
        measured.append(
            row(
                f"attention.time.r50_{size}",
                "s",
                seconds["ours"],
                peer=seconds["peer"],
                peer_name="transformers grid_sample",
                better="lower",
                target="<= 0.33x" if on_gpu else None,
            )
        )
    return measured


def case(size: int, batch: int, device: torch.device) -> tuple[Shapes, list[Tensor]]:
    """Return the level shapes of a square image, and values and projections for them."""
    generator = torch.Generator().manual_seed(0)
    settings = PixelDecoderSettings()
    heads, samples = settings.heads, settings.heads * len(LEVELS) * settings.points
    shapes = tuple((size // stride, size // stride) for stride in LEVELS)
    layer = DeformableSelfAttention(DIM, heads, settings.points)
    layer.reset_parameters()
    tokens = sum(height * width for height, width in shapes)
    projected = torch.randn(batch, tokens, 3 * samples, generator=generator)
    projected[:, :, : 2 * samples] += layer.sampling_offsets.bias.detach()
    value = torch.randn(batch, tokens, heads, DIM // heads, generator=generator)
    return shapes, [x.to(device).requires_grad_() for x in (value, projected)]


def peer(value: Tensor, shapes: Shapes, projected: Tensor) -> Tensor:
    """Return `deformable_self_attention` as an encoder layer of transformers computes it."""
    heads, levels = value.shape[2], len(shapes)
    offsets, logits = projected.tensor_split([projected.shape[2] // 3 * 2], 2)
    offsets = offsets.unflatten(2, (heads, levels, -1, 2))
    weights = logits.unflatten(2, (heads, -1)).softmax(3).unflatten(3, (levels, -1))
    sizes = level_sizes(shapes, value.device, value.dtype)[:, None]
    centers = pixel_centers(shapes, value.device, value.dtype)
    locations = centers[:, None, None, None] + offsets / sizes
    return multi_scale_deformable_attention(value, list(shapes), locations, weights)


def step(attention, shapes: Shapes, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of one pass after the device has computed them."""
    value, projected = inputs
    output = attention(value, shapes, projected)
    gradients = torch.autograd.grad(output, inputs, torch.ones_like(output))
    if value.is_cuda:
        torch.cuda.synchronize()
    return gradients
