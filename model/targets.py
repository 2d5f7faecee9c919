"""Inputs of the criterion beside the predictions: truth as integer maps, and random numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.points import CODES

Draw = Callable[[int, str, tuple[int, ...]], Tensor]
"""(index of the image in the batch, purpose, shape) -> float32 in [0, 1) on the device."""


def draw_rows(draw: Draw, purpose: str, counts: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Draw `counts[b]` rows of a shape for every image b: float32 [Σ counts, *shape].

    Those of image b are `draw(b, purpose, (counts[b], *shape))`. A `draw` with a method `rows`,
    which takes the other arguments, draws them all at once.
    """
    if rows := getattr(draw, "rows", None):
        return rows(purpose, counts, shape)
    return torch.cat([draw(b, purpose, (n, *shape)) for b, n in enumerate(counts) if n])


class Targets(NamedTuple):
    """Segments of a batch; mask n of image b is `maps[b, layer[b, n]] == value[b, n]`."""

    maps: Tensor  # uint8 or int32 [B, layers, H, W]
    categories: Tensor  # int64 [B, N], -1 = padding
    layer: Tensor  # int64 [B, N]
    value: Tensor  # int64 [B, N]

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on `device`. Copies overlap with compute if the source is pinned."""
        return Targets(*(part.to(device, non_blocking=True) for part in self))

    def void(self) -> Tensor:
        """Return which pixels belong to no segment, uint8 [B, 1, H, W]."""
        batch, layers, *_ = self.maps.shape
        image = torch.arange(batch, device=self.maps.device)[:, None]
        known = self.layer.new_zeros((batch, layers, CODES[self.maps.dtype]))
        known[image, self.layer, self.value] = (self.categories >= 0).long()
        known[:, :, 0] = 0
        found = known.gather(2, self.maps.flatten(2).long()).view(self.maps.shape)
        return (found.amax(1, keepdim=True) == 0).to(torch.uint8)
