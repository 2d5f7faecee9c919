"""Outlines of the painted shapes, and the pixels that they cover."""

import cv2
import numpy as np

Array = np.ndarray

_SUPERSAMPLE = 4


def _unit_outlines(shape: str) -> list[Array]:
    """Return the outlines [n, 2] of a shape about 1 wide, centered at 0; a second is a hole."""
    match shape:
        case "circle":
            return [_corners(48, 0.5)]
        case "square":
            return [_corners(4, 0.62)]
        case "triangle":
            return [_corners(3, 0.62)]
        case "star":
            points = _corners(10, 0.6)
            points[1::2] *= 0.42
            return [points]
        case "ring":
            return [_corners(48, 0.5), _corners(32, 0.25)]
    raise ValueError(f"no shape {shape!r}")


def _corners(count: int, radius: float) -> Array:
    """Return the corners of a regular polygon around 0, `[count, 2]`."""
    angle = np.arange(count) * 2 * np.pi / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def outlines(shape: str, center: Array, size: float, angle: float) -> list[Array]:
    """Return the outlines of a shape at a position, in pixels, scaled and rotated."""
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [center + size * outline @ rotation for outline in _unit_outlines(shape)]


def area_of(polygons: list[Array]) -> float:
    """Return the area of the first polygon without the others, which are its holes."""
    areas = [cv2.contourArea(p.astype(np.float32)) for p in polygons]
    return areas[0] - sum(areas[1:])


def coverage(polygons: list[Array], side: int) -> Array:
    """Return the fraction of each pixel inside the polygons (even-odd), float32 `[S, S]`.

    The polygons are filled at four times the resolution, in their bounding box only, and averaged.
    """
    points = np.concatenate(polygons)
    x0, y0 = np.clip(np.floor(points.min(0)), 0, side - 1).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(points.max(0)), 1, side).astype(int).tolist()
    shift, corner = 4, (x0, y0)  # fillPoly takes fixed-point numbers with `shift` fraction bits
    scaled = [((p - corner) * _SUPERSAMPLE - 0.5) * (1 << shift) for p in polygons]
    fine = np.zeros(((y1 - y0) * _SUPERSAMPLE, (x1 - x0) * _SUPERSAMPLE), np.uint8)
    cv2.fillPoly(fine, [np.rint(p).astype(np.int32) for p in scaled], 255, shift=shift)
    cover = np.zeros((side, side), np.float32)
    cover[y0:y1, x0:x1] = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    return cover / 255
