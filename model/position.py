"""Constants of feature grids (sine encodings, pixel centers), computed once per shape."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

TEMPERATURE = 10000.0


def constant(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache a function of hashable arguments that returns a constant.

    The result is computed outside of inference mode, so that training can use a constant that was
    first needed in inference. Under `torch.compile` and dispatch modes, such as that of fake
    tensors, the function is called instead.
    """

    @functools.lru_cache(maxsize=16)
    def cached(*args) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args)

    @functools.wraps(function)
    def call(*args) -> Tensor:
        is_traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
        return function(*args) if is_traced else cached(*args)

    return call


@constant
def sine_encoding(
    height: int, width: int, dim: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the 2-D sine encoding [H·W, dim] of a feature map.

    The first half of the channels encodes y and the second half x. Coordinates 1..n are scaled to
    (0, 2π]. Channels alternate sine and cosine of one frequency (DETR, arXiv 2005.12872, appendix
    A.4).
    """
    half = dim // 2
    channel = torch.arange(half, device=device, dtype=dtype)
    frequency = TEMPERATURE ** (2 * torch.div(channel, 2, rounding_mode="floor") / half)

    def encode(size: int) -> Tensor:
        position = torch.arange(1, size + 1, device=device, dtype=dtype)
        phase = (position / (size + 1e-6) * 2 * math.pi)[:, None] / frequency  # [size, half]
        return torch.stack((phase[:, 0::2].sin(), phase[:, 1::2].cos()), dim=2).flatten(1)

    y = encode(height)[:, None].expand(height, width, half)
    x = encode(width)[None].expand(height, width, half)
    return torch.cat((y, x), dim=2).flatten(0, 1)


@constant
def pixel_centers(
    shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the normalized pixel centers [Σ H·W, 2], x first, of levels of shapes (H, W)."""

    def centers(size: int) -> Tensor:
        return (torch.arange(size, device=device, dtype=dtype) + 0.5) / size

    grids = [torch.cartesian_prod(centers(height), centers(width)) for height, width in shapes]
    return torch.cat(grids).flip(1)


@constant
def level_sizes(
    shapes: tuple[tuple[int, int], ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return (W, H) of each level: [levels, 2]."""
    return torch.tensor(shapes, device=device, dtype=dtype).flip(1)
