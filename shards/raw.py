"""What raw data sets give, checked and put in the schema's terms: images, id maps, masks."""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Reject
from shards.schema import image_ext, map_type

_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that swap width and height
_EXTS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def read_image(
    path: Path, size: tuple[int, int] | None, doctor: Doctor, *, mismatch: int = 3
) -> tuple[bytes, int, int]:
    """The bytes of an image that decodes, with width and height as shown (EXIF applied).

    `size` (width, height) is that of the truth, if known; an image of another one is rejected with
    the finding `mismatch`: 3 where an annotation declares the size, 9 where a map has it.
    """
    try:
        image = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Reject(7, f"{path.name} is missing") from None
    try:
        with Image.open(io.BytesIO(image)) as picture:
            kind, mode, stored = picture.format, picture.mode, picture.size
            orientation = _orientation(picture.info.get("exif", b""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Reject(1, f"no decoder knows it ({type(error).__name__})") from None
    shown = stored[::-1] if orientation in _TURNED else stored
    if orientation in range(2, 9):
        doctor.note(4, f"its EXIF orientation is {orientation}")
        if size == stored != shown and kind == "JPEG":
            image, shown = _upright(image), stored
    if size is not None and size != shown:
        raise Reject(mismatch, f"the image is {_by(shown)}, its truth {_by(size)}")
    if cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB) is None:
        cut = kind in _ENDS and not image.endswith(_ENDS[kind])
        raise Reject(2 if cut else 1, f"the {kind} does not decode")
    deep = kind == "PNG" and image[24] == 16  # bits a channel, in its header
    if deep or mode not in ("RGB", "P"):
        doctor.note(5, f"its mode is {mode}{', 16 bit' * deep}")
    if _EXTS.get(kind) != image_ext(path.name):
        doctor.note(6, f"it is a {kind}")
    return image, *shown


def _orientation(exif: bytes) -> int:
    """The orientation of a file that need not decode, as `Image.getexif` would have it do."""
    tags = Image.Exif()
    tags.load(exif)
    return tags.get(_ORIENTATION, 1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _upright(image: bytes) -> bytes:
    """A JPEG with its EXIF orientation set to 1 and nothing else changed."""
    tiff = image.index(b"Exif\0\0") + 6
    order = "<" if image[tiff : tiff + 2] == b"II" else ">"
    entries = tiff + struct.unpack_from(order + "I", image, tiff + 4)[0]
    (count,) = struct.unpack_from(order + "H", image, entries)
    for at in range(entries + 2, entries + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", image, at)[0] == _ORIENTATION:
            return image[: at + 8] + struct.pack(order + "H", 1) + image[at + 10 :]
    raise AssertionError("an orientation was read from it")


def read_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The ids `[H, W]` uint32 of a panoptic PNG: R + 256 G + 65536 B. `size` is width, height."""
    picture = read_map(path, size, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGBA).view("<u4")[..., 0] & 0xFFFFFF


def read_map(path: Path, size: tuple[int, int], flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    """A map of truth, as OpenCV reads it with `flags`. `size` is the image's width, height."""
    picture = cv2.imread(str(path), flags)
    if picture is None:
        raise Reject(8, f"{path.name} is {'unreadable' if path.is_file() else 'missing'}")
    if picture.shape[1::-1] != size:
        raise Reject(9, f"{path.name} is {_by(picture.shape[1::-1])}, the image {_by(size)}")
    return picture


def number_segments(ids: np.ndarray, segment_ids: list[int]) -> np.ndarray:
    """The map `[H, W]` of publisher's ids (0 = void) as places in `segment_ids`, counted from 1.

    Rejects it unless the non-zero ids of the map are exactly `segment_ids`.
    """
    if twice := [i for i in segment_ids if segment_ids.count(i) > 1]:
        raise Reject(11, f"id {twice[0]} is in the JSON {segment_ids.count(twice[0])} times")
    if strange := [i for i in segment_ids if not 0 < i < 1 << 24]:
        raise Reject(11, f"id {strange[0]} is in the JSON, but no PNG can hold it")
    table = np.array([0, *segment_ids], np.uint32)
    order = np.argsort(table)
    known = table[order]
    place = np.minimum(np.searchsorted(known, ids), len(segment_ids))
    if (strange := ids[known[place] != ids]).size:
        raise Reject(10, f"id {strange[0]} is in the PNG but not in the JSON")
    numbered = order.astype(map_type(len(segment_ids)))[place]
    absent = np.bincount(numbered.ravel(), minlength=len(table))[1:] == 0
    if absent.any():
        raise Reject(11, f"id {segment_ids[absent.argmax()]} is in the JSON but not in the PNG")
    return numbered


def to_rle(segmentation: Any, width: int, height: int) -> dict[str, Any]:
    """COCO's polygons or run lengths as one compressed RLE. Rejects what is damaged."""
    try:
        if isinstance(segmentation, list):
            return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        size, runs = list(segmentation["size"]), segmentation["counts"]
        runs = _runs(runs) if isinstance(runs, str) else runs
        if size != [height, width] or sum(runs) != height * width or min(runs) < 0:
            raise ValueError(f"size {size}, {sum(runs)} pixels, the image is {[height, width]}")
        return coco_mask.frPyObjects({"size": size, "counts": runs}, height, width)
    except Exception as error:  # pycocotools raises bare ones for what it cannot read
        raise Reject(20, f"the segmentation is damaged ({error})") from error


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
