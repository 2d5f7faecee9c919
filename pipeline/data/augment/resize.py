"""A window of a resized image and of its integer maps; "cv2" avoids resizing the whole image.

Coordinates refer to pixel centers: if a side of n pixels is resized to m pixels, the center of
pixel x moves to (x + 1/2) m/n - 1/2.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image

# Largest shift of a window, in source pixels; it is less if the image is enlarged over 16 times.
PHASE = 1 / 64
REACH = 160  # output pixels before a window that are searched for an aligned start


class Window(NamedTuple):
    """`rows` x `columns` pixels at (top, left) of an image resized to `height` x `width`."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    @property
    def part(self) -> tuple[slice, slice]:
        """The window as an index into the resized image."""
        bottom, right = self.top + self.rows, self.left + self.columns
        return slice(self.top, bottom), slice(self.left, right)


def shortest_edge_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Return the (height, width) at which the shorter side is `short`, or the longer side `long`.

    The second case applies if the longer side would otherwise exceed `long`. The arithmetic is that
    of Detectron2's `ResizeShortestEdge`, operation by operation, because one division instead of
    two rounds some sides differently: 2221x4442 becomes 666x1333 and not 667x1333. A side has at
    least one pixel, which Detectron2 does not guarantee.
    """
    scale = short / min(height, width)
    sides = (short, scale * width) if height < width else (scale * height, short)
    if max(sides) > long:
        scale = long / max(sides)
        sides = sides[0] * scale, sides[1] * scale
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 [h, w, 3] to uint8 [height, width, 3], with antialiasing if it shrinks."""
    return cv2.resize(image, (width, height), interpolation=_interpolation(image, height, width))


def image_window(image: np.ndarray, window: Window, backend: str = "cv2") -> np.ndarray:
    """Return a window of the resized image.

    Args:
        image: uint8 [h, w, 3].
        window: The window.
        backend: "cv2" averages areas to shrink and interpolates to enlarge; the result is that
            of `resize`, shifted by at most PHASE. "pil" gives the same bytes as Pillow's bilinear
            filter, which Detectron2 uses.

    Returns:
        uint8 [rows, columns, 3].
    """
    height, width = window.height, window.width
    if backend == "pil":
        whole = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(whole)[window.part]
    interpolation = _interpolation(image, height, width)
    y, x = (
        _aligned(source, target, first, count)
        for source, target, first, count in (
            (image.shape[0], height, window.top, window.rows),
            (image.shape[1], width, window.left, window.columns),
        )
    )
    fy, fx = height / image.shape[0], width / image.shape[1]
    part = cv2.resize(image[y.source, x.source], None, fx=fx, fy=fy, interpolation=interpolation)
    return part[y.skip : y.skip + window.rows, x.skip : x.skip + window.columns]


def maps_window(maps: np.ndarray, window: Window, backend: str = "cv2") -> np.ndarray:
    """Return a window of the resized maps: the value of the nearest source pixel.

    Args:
        maps: Integers [L, h, w].
        window: The window.
        backend: The rule. "cv2" takes the source pixel nearest to the center of an output pixel,
            and the one further right or down if two are equally near; "pil" resolves these ties as
            Pillow does. "torch" takes the pixel nearest to the upper left corner of the output
            pixel, as `torch.nn.functional.interpolate` does.

    Returns:
        Integers [L, rows, columns].
    """
    if backend != "cv2":
        nearest = {"pil": _pil_nearest, "torch": _torch_nearest}[backend]
        return np.stack([nearest(layer, window) for layer in maps])
    y = _nearest(maps.shape[1], window.height, window.top, window.rows)
    x = _nearest(maps.shape[2], window.width, window.left, window.columns)
    # Columns first, on the few source rows of the window; then whole rows are copied.
    return maps[:, y[0] : y[-1] + 1].take(x, axis=2).take(y - y[0], axis=1)


def _pil_nearest(layer: np.ndarray, window: Window) -> np.ndarray:
    """Return a window [rows, columns] of a map [h, w], resized by Pillow.

    A map of 16 bits is widened to 32 bits, because Pillow resolves ties of 8 and 32 bits alike and
    ties of 16 bits differently.
    """
    wide = layer if layer.dtype == np.uint8 else layer.astype(np.int32)
    size = window.width, window.height
    whole = Image.fromarray(wide).resize(size, Image.Resampling.NEAREST)
    return np.asarray(whole)[window.part].astype(layer.dtype)


def _torch_nearest(layer: np.ndarray, window: Window) -> np.ndarray:
    """Return a window [rows, columns] of a map [h, w], resized by torch.

    The map is converted to float64 as in Detectron2, because torch computes the source pixels of
    other types with other rounding.
    """
    wide = torch.from_numpy(np.ascontiguousarray(layer, np.float64))[None, None]
    whole = torch.nn.functional.interpolate(wide, (window.height, window.width), mode="nearest")
    return whole[0, 0].numpy()[window.part].astype(layer.dtype)


class _Aligned(NamedTuple):
    """The part of the source to resize, along one axis.

    Attributes:
        source: The source pixels.
        skip: Number of output pixels of that part before the window.
    """

    source: slice
    skip: int


def _aligned(source: int, target: int, first: int, count: int) -> _Aligned:
    """Choose the source pixels from which output pixels [first, first + count) are computed.

    Args:
        source: Length of the side before resizing.
        target: Length of the side after resizing.
        first: First output pixel of the window.
        count: Number of output pixels of the window.
    """
    # Output pixel s begins at s * step in the source. If that is a whole number, the part of the
    # source from there on, resized by itself, equals the same part of the whole resized image,
    # because both grids begin at one point. So take the nearest start s before the window whose
    # s * step is within min(PHASE, step / 4) of a whole number, and cut off the output before the
    # window. If REACH output pixels hold no such start, start at the border of the image. The whole
    # image takes 1.6 times as long to resize as this part, if its area is more than twice that of
    # the window.
    step = source / target
    last = first - math.ceil(1 / step)  # one source pixel earlier, which interpolation needs
    starts = np.arange(last, max(0, last - REACH), -1)
    offsets = np.abs(starts * step - np.rint(starts * step))
    found = starts[offsets <= min(PHASE, step / 4)]
    start = int(found[0]) if len(found) else 0
    end = math.ceil((first + count) * step) + 1
    return _Aligned(slice(round(start * step), min(end, source)), first - start)


def _nearest(source: int, target: int, first: int, count: int) -> np.ndarray:
    """Return the source pixel nearest to each of the output pixels [first, first + count)."""
    return (2 * np.arange(first, first + count) + 1) * source // (2 * target)


def _interpolation(image: np.ndarray, height: int, width: int) -> int:
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
