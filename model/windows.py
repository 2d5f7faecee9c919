"""Windows of Swin and Swin V2 with sizes that `torch.export` can follow.

transformers pads by the remainder of a division and leaves sizes to `view`. If the sizes are
symbols, each of them is an equation that torch solves again for every operation: tracing Swin-T
took more than 400 s. It also keeps or leaves out the crop after the attention for all images, as
the traced image needs it. Here a padded side is a number of windows times their size, and the
crop always happens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.swin import modeling_swin
from transformers.models.swinv2 import modeling_swinv2

_CROP = (0, 0, 0, 1, 0, 1)  # any padding that is not 0 makes a layer crop


@contextmanager
def exact_windows() -> Iterator[None]:
    """Let Swin and Swin V2 divide their maps into windows with the functions of this file.

    The results are equal to the bit.
    """
    owners: list[tuple[Any, str, Any]] = []
    for module, layer in (
        (modeling_swin, modeling_swin.SwinLayer),
        (modeling_swinv2, modeling_swinv2.Swinv2Layer),
    ):
        owners += [
            (module, "window_partition", _partition),
            (module, "window_reverse", _reverse),
            (layer, "maybe_pad", _pad),
        ]
    kept = [getattr(owner, name) for owner, name, _ in owners]
    try:
        for owner, name, function in owners:
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name, _), function in zip(owners, kept, strict=True):
            setattr(owner, name, function)


def _pad(layer: Any, x: Tensor, height: int, width: int) -> tuple[Tensor, tuple[int, ...]]:
    """Return [B, H, W, C] padded to whole windows, and a padding that makes the layer crop."""
    size = layer.window_size
    bottom, right = ((side + size - 1) // size * size - side for side in (height, width))
    return F.pad(x, (0, 0, 0, right, 0, bottom)), _CROP


def _partition(x: Tensor, size: int) -> Tensor:
    """Return the windows [B·rows·columns, size, size, C] of [B, H, W, C]."""
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    windows = x.view(batch, rows, size, columns, size, channels).transpose(2, 3).contiguous()
    return windows.view(batch * rows * columns, size, size, channels)


def _reverse(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Return the map [B, H, W, C] of its windows."""
    rows, columns, channels = height // size, width // size, windows.shape[-1]
    x = windows.view(windows.shape[0] // (rows * columns), rows, columns, size, size, channels)
    return x.transpose(2, 3).reshape(-1, rows * size, columns * size, channels)
