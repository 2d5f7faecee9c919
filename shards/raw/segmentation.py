"""Read the segmentation of an instance in COCO's formats as a mask."""

import reprlib
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Reject
from shards.raw.masks import Rle, decode_runs
from shards.raw.values import integer

_MAX_COORDINATE = 100_000  # in pixels
_MAX_OUTLINE = 1 << 23  # in pixels, each of which costs pycocotools 80 bytes


def to_rle(name: str, segmentation: Any, width: int, height: int, doctor: Doctor) -> Rle:
    """Convert a COCO segmentation to one compressed RLE.

    Polygons of fewer than 3 points are noted and left out.

    Args:
        name: The object's name in messages.
        segmentation: A list of polygons or of run lengths, one polygon, or one mask of plain or
            compressed run lengths. A polygon is a list of coordinates (x, y, x, y, ...) or of
            points [x, y].
        width: The image's width in pixels.
        height: The image's height in pixels.
        doctor: Receives the findings.

    Raises:
        Reject: The run lengths are broken or belong to another size.
        ValueError: The segmentation has another form, or a coordinate is not a finite number.
    """
    if isinstance(segmentation, dict):
        return _from_runs(name, segmentation, width, height)
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation {reprlib.repr(segmentation)} is not a list or run lengths")
    parts = [part for part in segmentation if not isinstance(part, dict)]
    rles = [
        _from_runs(name, part, width, height) for part in segmentation if isinstance(part, dict)
    ]
    polygons = [p for p in _polygons(parts) if _can_draw(name, p, width, height, doctor)]
    if polygons:
        rles += coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    return coco_mask.merge(rles) if rles else _compress([width * height], height, width)


def _from_runs(name: str, mask: dict[str, Any], width: int, height: int) -> Rle:
    """Return a mask of plain or compressed run lengths in compressed form.

    Raises:
        Reject: The run lengths are broken or belong to another size.
    """
    pixels, size, counts = width * height, mask.get("size"), mask.get("counts")
    try:
        size = [integer("size", part) for part in size or ()]
        if isinstance(counts, str):
            runs = decode_runs(counts.encode())
        else:
            runs = np.array([_run(part, pixels) for part in counts or ()], np.int64)
    except (ValueError, TypeError):
        raise Reject(20, f"{name} has run lengths of no known form") from None
    if size != [height, width]:
        raise Reject(20, f"{name} has run lengths of size {size}, not {[height, width]}")
    if runs.min(initial=0) < 0 or runs.max(initial=0) > pixels or runs.sum() != pixels:
        raise Reject(20, f"{name} has run lengths of other than {pixels} pixels")
    if isinstance(counts, str):
        return {"size": size, "counts": counts.encode()}
    return _compress(runs.tolist(), height, width)


def _run(value: Any, pixels: int) -> int:
    """Return one plain run length, or -1 if it is beyond the image."""
    run = value if type(value) is int else integer("counts", value)
    return run if 0 <= run <= pixels else -1


def _compress(counts: list[int], height: int, width: int) -> Rle:
    plain: Any = {"size": [height, width], "counts": counts}  # the type stubs lack this form
    return coco_mask.frPyObjects(plain, height, width)


def _polygons(parts: list[Any]) -> list[np.ndarray]:
    """Return polygons, each as `float64 [2 n]` (x, y, x, y, ...), from any nesting of lists.

    Raises:
        ValueError: A coordinate is not a finite number, or a list is not of numbers or of points.
    """
    nested = any(isinstance(part, list) for part in parts)
    polygons = [_coordinates(part) for part in (parts if nested or not parts else [parts])]
    # A polygon has at least three points, so these are the points of one polygon
    if len(polygons) > 2 and all(polygon.size == 2 for polygon in polygons):
        return [np.concatenate(polygons)]
    return polygons


def _coordinates(polygon: Any) -> np.ndarray:
    try:
        points = np.array(polygon, np.float64)
    except (ValueError, TypeError, OverflowError):
        points = np.array(np.nan)
    if points.ndim == 0 or not np.isfinite(points).all():
        raise ValueError(f"the polygon {reprlib.repr(polygon)} is not a list of finite numbers")
    if points.ndim > 1 and points.shape[-1] != 2:
        raise ValueError(f"the polygon {reprlib.repr(polygon)} is not a list of points [x, y]")
    return points.ravel()


def _can_draw(name: str, points: np.ndarray, width: int, height: int, doctor: Doctor) -> bool:
    """Return whether a polygon has enough points; note it if not, or if it leaves the image.

    Raises:
        ValueError: Its outline is too long to be drawn.
    """
    if points.size < 6 or points.size % 2:
        doctor.note(19, f"{name} has a polygon of {points.size / 2:g} points")
        return False
    x, y = points[0::2], points[1::2]
    steps = np.maximum(abs(x - np.roll(x, 1)), abs(y - np.roll(y, 1)))
    if abs(points).max() > _MAX_COORDINATE or steps.sum() > _MAX_OUTLINE:
        raise ValueError(f"a polygon reaches too far outside the image of {width}x{height} pixels")
    if points.min() < -1 or x.max() > width + 1 or y.max() > height + 1:  # allow for rounding
        doctor.note(19, f"{name} has a polygon outside the image")
    return True
