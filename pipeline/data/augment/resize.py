"""A window of a resized picture and of its integer maps, made without resizing the rest.

Pixel centers: pixel x of a side of n pixels that becomes m lies at (x + 1/2) m/n - 1/2.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

BACKENDS = ("cv2", "pil")
PHASE = 1 / 64  # of a source pixel: how far off a window of the picture may lie
REACH = 160  # output pixels before a window that may be made in vain to find such a phase


class Window(NamedTuple):
    """`rows` x `columns` pixels at (top, left) of the picture resized to `height` x `width`."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    @property
    def part(self) -> tuple[slice, slice]:
        """The window as an index into the resized picture."""
        bottom, right = self.top + self.rows, self.left + self.columns
        return slice(self.top, bottom), slice(self.left, right)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """u8 [h,w,3] -> u8 [height,width,3], antialiased when it shrinks."""
    return cv2.resize(image, (width, height), interpolation=_interpolation(image, height, width))


def image_window(image: np.ndarray, window: Window, backend: str = "cv2") -> np.ndarray:
    """u8 [h,w,3] -> u8 [rows,columns,3].

    `cv2` averages areas where it shrinks and interpolates where it grows; the window is that of
    `resize` but for a shift of at most 1/64 of a source pixel. `pil` is Pillow's bilinear filter,
    to the bit what the reference's data path makes.
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
    near = cv2.resize(image[y.source, x.source], None, fx=fx, fy=fy, interpolation=interpolation)
    return near[y.skip : y.skip + window.rows, x.skip : x.skip + window.columns]


def maps_window(maps: np.ndarray, window: Window, backend: str = "cv2") -> np.ndarray:
    """Integer [layers,h,w] -> [layers,rows,columns], nearest by pixel centers.

    A center between two pixels takes the latter; `pil` decides as Pillow does.
    """
    if backend == "pil":
        return np.stack([_pil_nearest(layer, window) for layer in maps])
    y = _nearest(maps.shape[1], window.height, window.top, window.rows)
    x = _nearest(maps.shape[2], window.width, window.left, window.columns)
    # the source's few rows first: what is left is copying whole rows
    return maps[:, y[0] : y[-1] + 1].take(x, axis=2).take(y - y[0], axis=1)


def _pil_nearest(layer: np.ndarray, window: Window) -> np.ndarray:
    """[h,w] -> [rows,columns] by the rule that Pillow has for 8 and 32 bit, not that for 16."""
    wide = layer if layer.dtype == np.uint8 else layer.astype(np.int32)
    size = window.width, window.height
    whole = Image.fromarray(wide).resize(size, Image.Resampling.NEAREST)
    return np.asarray(whole)[window.part].astype(layer.dtype)


class _Aligned(NamedTuple):
    source: slice  # of the side's pixels
    skip: int  # pixels made before the window begins


def _aligned(source: int, target: int, first: int, count: int) -> _Aligned:
    """The source pixels that pixels [first, first + count) of a side are made from.

    They begin where an output pixel begins on a source pixel, to `PHASE`: there, the part resized
    by itself is the part of the whole. The border is such a place, if there is none nearer.
    """
    step = source / target
    last = first - math.ceil(1 / step)  # so that interpolation has its neighbor
    starts = np.arange(last, max(0, last - REACH), -1)
    off = np.abs(starts * step - np.rint(starts * step))
    found = starts[off <= min(PHASE, step / 4)]
    start = int(found[0]) if len(found) else 0
    end = math.ceil((first + count) * step) + 1
    return _Aligned(slice(round(start * step), min(end, source)), first - start)


def _nearest(source: int, target: int, first: int, count: int) -> np.ndarray:
    """The source pixel nearest to each of the pixels [first, first + count) of a side."""
    return (2 * np.arange(first, first + count) + 1) * source // (2 * target)


def _interpolation(image: np.ndarray, height: int, width: int) -> int:
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
