"""What raw data sets give, checked and put in the schema's terms: image sizes, id maps, masks."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from shards.errors import DataError
from shards.schema import map_type

_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def image_size(image: bytes) -> tuple[int, int]:
    """Width and height as shown, that is after the EXIF orientation, from the header alone."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            rotated = picture.getexif().get(0x0112) in _ROTATED
            return picture.size[::-1] if rotated else picture.size
    except OSError as error:
        raise DataError("the file is no image; get it anew") from error


def number_segments(ids: np.ndarray, segment_ids: list[int]) -> np.ndarray:
    """The map `[H, W]` of publisher's ids (0 = void) as places in `segment_ids`, counted from 1.

    Raises DataError unless the non-zero ids of the map are exactly `segment_ids`.
    """
    if len(set(segment_ids)) < len(segment_ids) or not all(0 < i < 1 << 24 for i in segment_ids):
        raise DataError("segment ids in the JSON are not unique, or not 24 bit and above 0")
    table = np.array([0, *segment_ids], np.uint32)
    order = np.argsort(table)
    known = table[order]
    place = np.minimum(np.searchsorted(known, ids), len(segment_ids))
    if (strange := ids[known[place] != ids]).size:
        raise DataError(f"id {strange[0]} is in the map but not in the JSON")
    numbered = order.astype(map_type(len(segment_ids)))[place]
    absent = np.bincount(numbered.ravel(), minlength=len(table))[1:] == 0
    if absent.any():
        raise DataError(f"id {segment_ids[absent.argmax()]} is in the JSON but not in the map")
    return numbered


def to_rle(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """COCO's polygons or run lengths as one compressed RLE. Raises DataError if damaged."""
    try:
        if isinstance(segmentation, list):
            return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        size, runs = list(segmentation["size"]), segmentation["counts"]
        runs = _runs(runs) if isinstance(runs, str) else runs
        if size != [height, width] or sum(runs) != height * width or min(runs) < 0:
            raise ValueError(f"size {size}, {sum(runs)} pixels, the image is {[height, width]}")
        return coco_mask.frPyObjects({"size": size, "counts": runs}, height, width)
    except Exception as error:  # pycocotools raises bare ones for what it cannot read
        raise DataError(f"the segmentation is damaged ({error}); correct it") from error


def _runs(counts: str) -> list[int]:
    """The run lengths in COCO's compressed form, which pycocotools reads but does not check.

    A number is 5 bits a character, least first, with a sign; from the fourth on it is the
    difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode():
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4  # the sign bit stands for all higher ones
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def pack(
    rles: Sequence[dict[str, Any]], order: Sequence[int], height: int, width: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Put every mask, in `order`, into the first layer where it overlaps nothing.

    `rles` are compressed. Returns layers `[n, H, W]` with n >= 1 (uint8, or uint16 past 255 masks
    in a layer) and for every mask its (layer, value): the mask is `layers[layer] == value`.
    """
    layers = [np.zeros((height, width), np.uint16)]
    counts = [0]
    places = [(0, 0)] * len(rles)
    for i in order:
        x, y, w, h = coco_mask.toBbox(rles[i]).astype(int)
        box = np.s_[y : y + h, x : x + w]
        mask = coco_mask.decode(rles[i])[box].astype(bool)
        free = (n for n, layer in enumerate(layers) if not layer[box][mask].any())
        n = next(free, len(layers))
        if n == len(layers):
            layers.append(np.zeros((height, width), np.uint16))
            counts.append(0)
        counts[n] += 1
        layers[n][box][mask] = counts[n]
        places[i] = n, counts[n]
    return np.stack(layers).astype(map_type(max(counts))), places
