"""What the criterion is given beside predictions: truth as integer maps, and random numbers."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Draw = Callable[[int, str, tuple[int, ...]], Tensor]
"""(image in the batch, purpose, shape) -> uniform numbers in [0, 1), float32, on the device."""


class Targets(NamedTuple):
    """Segments of a batch. Mask n of image b is `maps[b, layer[b, n]] == value[b, n]`."""

    maps: Tensor  # u8 | i32 [B, layers, H, W]
    categories: Tensor  # i64 [B, N], -1 = padding
    layer: Tensor  # i64 [B, N]
    value: Tensor  # i64 [B, N]

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on `device`. Copies overlap with compute if the source is pinned."""
        return Targets(*(part.to(device, non_blocking=True) for part in self))
