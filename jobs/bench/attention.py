"""Measure deformable attention, forward and backward, against the grid_sample form of transformers.

The shapes are those of an encoder layer for images of 512 and 1024 pixels: one image on a CPU,
eight on a GPU. Samples have their initial locations plus noise of a standard deviation of 1 pixel.
"""

import torch
from rich.console import Console
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from jobs.bench import alternate, row
from model.deformable_attention import deformable_attention
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
                    "ours": lambda s=shapes, i=inputs: step(deformable_attention, s, i),
                    "peer": lambda s=shapes, i=inputs: step(multi_scale_deformable_attention, s, i),
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
    """Return the level shapes of a square image, and values, locations, and weights for them."""
    generator = torch.Generator().manual_seed(0)
    settings = PixelDecoderSettings()
    heads, levels, points = settings.heads, len(LEVELS), settings.points
    shapes = tuple((size // stride, size // stride) for stride in LEVELS)
    layer = DeformableSelfAttention(DIM, heads, points)
    layer.reset_parameters()
    offsets = layer.sampling_offsets.bias.detach().view(heads, levels, points, 2)
    centers = pixel_centers(shapes, torch.device("cpu"), torch.float32)
    tokens = len(centers)
    noise = torch.randn(batch, tokens, heads, levels, points, 2, generator=generator)
    sizes = level_sizes(shapes, torch.device("cpu"), torch.float32)[:, None]
    locations = centers[:, None, None, None] + (offsets + noise) / sizes
    scores = torch.randn(batch, tokens, heads, levels * points, generator=generator)
    weights = scores.softmax(3).unflatten(3, (levels, points))
    value = torch.randn(batch, tokens, heads, DIM // heads, generator=generator)
    inputs = [x.to(device).requires_grad_() for x in (value, locations, weights)]
    return shapes, inputs


def step(attention, shapes: Shapes, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of one pass after the device has computed them."""
    value, locations, weights = inputs
    output = attention(value, shapes, locations, weights)
    gradients = torch.autograd.grad(output, inputs, torch.ones_like(output))
    if value.is_cuda:
        torch.cuda.synchronize()
    return gradients
