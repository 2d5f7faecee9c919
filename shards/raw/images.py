"""What raw data sets give, checked and put in the schema's terms: images, id maps, masks."""

import contextlib
import functools
import io
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from shards.doctor import Doctor, Reject
from shards.format.schema import image_ext, map_type, png_size

_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that swap width and height
_EXTS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
_FAR = 100_000  # pixels
_DIGITS = 7  # of a compressed run length: 35 bits
# What can fail in a JPEG is its entropy code, all of which is read for a small gray picture too
_CHECKS = dict.fromkeys(("JPEG", "MPO"), cv2.IMREAD_REDUCED_GRAYSCALE_8)
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def keep_memory() -> None:
    """Let this process keep up to 62 MiB that it has freed. Pictures come and go, and the C library
    would return and fetch their pages each time, for a quarter of the time that a sample takes."""
    # glibc sets its thresholds by the largest block freed, up to 32 MiB
    np.empty(31 << 20, np.uint8)


def read_image(
    path: Path, size: tuple[int, int] | None, doctor: Doctor, *, mismatch: int = 3
) -> tuple[bytes, int, int]:
    """`check_image` of a file."""
    try:
        image = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Reject(7, f"{path.name} is missing") from None
    return check_image(image, path.name, size, doctor, mismatch=mismatch)


def check_image(
    image: bytes, name: str, size: tuple[int, int] | None, doctor: Doctor, *, mismatch: int = 3
) -> tuple[bytes, int, int]:
    """The bytes of an image that decodes, with width and height as shown (EXIF applied).

    `size` (width, height) is that of the truth, if known; an image of another one is rejected with
    the finding `mismatch`: 3 where an annotation declares the size, 9 where a map has it.
    """
    try:
        with Image.open(io.BytesIO(image)) as picture:
            kind, mode, stored = picture.format, picture.mode, picture.size
            orientation = _orientation(picture.info.get("exif", b""))
            shown = shown_size(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Reject(1, f"no decoder knows it ({type(error).__name__})") from None
    if orientation in range(2, 9):
        doctor.note(4, f"its EXIF orientation is {orientation}")
        if size == stored != shown and kind == "JPEG":
            image, shown = _upright(image), stored
    if size is not None and size != shown:
        raise Reject(mismatch, f"the image is {_by(shown)}, its truth {_by(size)}")
    if cv2.imdecode(np.frombuffer(image, np.uint8), _CHECKS.get(kind, cv2.IMREAD_COLOR)) is None:
        cut = kind in _ENDS and not image.endswith(_ENDS[kind])
        raise Reject(2 if cut else 1, f"the {kind} does not decode")
    deep = kind == "PNG" and image[24] == 16  # bits a channel, in its header
    if deep or mode not in ("RGB", "P"):
        doctor.note(5, f"its mode is {mode}{', 16 bit' * deep}")
    if _EXTS.get(kind) != image_ext(name):
        doctor.note(6, f"it is a {kind}")
    return image, *shown


def _orientation(exif: bytes) -> int:
    """The orientation of a file that need not decode, as `Image.getexif` would have it do."""
    tags = Image.Exif()
    tags.load(exif)
    return tags.get(_ORIENTATION, 1)


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as shown, that is after the EXIF orientation."""
    turned = _orientation(picture.info.get("exif", b"")) in _TURNED
    return picture.size[::-1] if turned else picture.size


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
    picture = read_map(path, size, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    ids = cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]
    ids &= 0xFFFFFF
    return ids


def read_map(path: Path, size: tuple[int, int], flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    """A map of truth, as OpenCV reads it with `flags`. `size` is the image's width, height."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        declared = png_size(file.read(24))
        if declared and declared != size:  # a huge one is not worth its decoding
            raise Reject(9, f"{path.name} is {_by(declared)}, the image {_by(size)}")
    picture = cv2.imread(str(path), flags)
    if picture is None:
        raise Reject(8, f"{path.name} is {'unreadable' if path.is_file() else 'missing'}")
    if picture.shape[1::-1] != size:
        raise Reject(9, f"{path.name} is {_by(picture.shape[1::-1])}, the image {_by(size)}")
    return picture


def check_area(name: str, declared: float, pixels: int, doctor: Doctor) -> None:
    """Note a mask without pixels, or of another size than declared.

    Polygons and crowds of the publishers differ from their pixels a little; far is what is over a
    quarter of the larger, and over 16 pixels.
    """
    if not pixels:
        doctor.note(15, f"{name} has no pixel")
    elif abs(declared - pixels) > max(16, declared / 4, pixels / 4):
        doctor.note(12, f"{name} declares {declared} pixels and has {pixels}")


def number_segments(ids: np.ndarray, segment_ids: list[int]) -> tuple[np.ndarray, list[int]]:
    """The map `[H, W]` of publisher's ids (0 = void) as places in `segment_ids`, counted from 1,
    and the pixels of each.

    Rejects it unless the non-zero ids of the map are exactly `segment_ids`.
    """
    if twice := [i for i, count in Counter(segment_ids).items() if count > 1]:
        raise Reject(11, f"id {twice[0]} is in the JSON several times")
    if strange := [i for i in segment_ids if not 0 < i < 1 << 24]:
        raise Reject(11, f"id {strange[0]} is in the JSON, but no PNG can hold it")
    flat = ids.ravel()
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)  # of runs of one id
    lengths = np.diff(starts, append=flat.size)
    table = _table(map_type(len(segment_ids)))
    table[segment_ids] = range(1, len(segment_ids) + 1)
    places = table[flat[starts]]
    table[segment_ids] = 0
    strange = np.flatnonzero((places == 0) & (flat[starts] != 0))
    if strange.size:
        raise Reject(10, f"id {flat[starts[strange[0]]]} is in the PNG but not in the JSON")
    counts = np.bincount(places, lengths, minlength=len(segment_ids) + 1)
    areas = counts[1:].astype(int).tolist()
    numbered = np.repeat(places, lengths).reshape(ids.shape)
    if 0 in areas:
        raise Reject(11, f"id {segment_ids[areas.index(0)]} is in the JSON but not in the PNG")
    return numbered, areas


@functools.cache
def _table(dtype: type[np.unsignedinteger]) -> np.ndarray:
    """A place for every 24-bit id, all 0 between uses; memory is taken only where it is touched."""
    return np.zeros(1 << 24, dtype)


def to_rle(name: str, segmentation: Any, width: int, height: int, doctor: Doctor) -> dict[str, Any]:
    """COCO's polygons or run lengths of the object `name` as one compressed RLE.

    What cannot be drawn of a polygon is noted and left out, broken run lengths are rejected.
    """
    size = [height, width]
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if _can_draw(name, p, width, height, doctor)]
        if not polygons:
            return coco_mask.frPyObjects({"size": size, "counts": [width * height]}, *size)
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    found, counts = list(segmentation["size"]), segmentation["counts"]
    if found != size:
        raise Reject(20, f"{name} has run lengths of size {found}, not {size}")
    runs = _checked_runs(counts.encode()) if isinstance(counts, str) else np.array(counts, np.int64)
    if runs.sum() != width * height or runs.min() < 0:
        raise Reject(20, f"{name} has run lengths of {runs.sum()} pixels, not {width * height}")
    if isinstance(counts, str):
        return {"size": size, "counts": counts.encode()}
    return coco_mask.frPyObjects({"size": size, "counts": counts}, *size)


def _can_draw(name: str, points: list[float], width: int, height: int, doctor: Doctor) -> bool:
    """Whether to draw a polygon (x, y, x, y, ...); notes it where not, or if it is cut off."""
    if len(points) < 6 or len(points) % 2:
        doctor.note(19, f"{name} has a polygon of {len(points) / 2:g} points")
        return False
    low, right, bottom = min(points), max(points[0::2]), max(points[1::2])
    if low < -1 or right > width + 1 or bottom > height + 1:  # rounding is no defect
        doctor.note(19, f"{name} has a polygon outside the image")
    return low > -_FAR and max(right, bottom) < _FAR  # beyond, drawing takes memory without end


def _checked_runs(counts: bytes) -> np.ndarray:
    """The run lengths in COCO's compressed form, which pycocotools reads but does not check; what
    is no such form comes out as -1."""
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(bits) or bits[-1] & 32 or bits.min() < 0 or bits.max() > 63:
        return np.array([-1])
    lengths = np.diff(np.flatnonzero(bits & 32 == 0), prepend=-1)
    return np.array([-1]) if lengths.max() > _DIGITS else _runs([counts])[0]


def _runs(all_counts: Sequence[bytes]) -> list[np.ndarray]:
    """The run lengths of masks in COCO's compressed form.

    A number is 5 bits a character, least first, with a sign; from the fourth on it is the
    difference to the run before the last.
    """
    bits = np.frombuffer(b"".join(all_counts), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, ends + 1 - starts))
    numbers = np.add.reduceat((bits & 31) << shifts, starts)
    numbers -= (bits[ends] & 16) << shifts[ends] + 1  # the sign bit stands for all higher ones
    firsts = np.searchsorted(starts, np.cumsum([len(counts) for counts in all_counts[:-1]]))
    masks = np.split(numbers, firsts)
    for runs in masks:
        runs[1::2] = np.cumsum(runs[1::2])
        runs[2::2] = np.cumsum(runs[2::2])
    return masks


def pack(
    rles: Sequence[dict[str, Any]], order: Sequence[int], height: int, width: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Put every mask, in `order`, into the first layer where it overlaps nothing.

    `rles` are compressed. Returns layers `[n, H, W]` with n >= 1 (uint8, or uint16 past 255 masks
    in a layer) and for every mask its (layer, value): the mask is `layers[layer] == value`.
    """
    dtype = map_type(len(rles))
    layers = [np.zeros((width, height), dtype)]  # columns first, as run lengths are
    counts = [0]
    places = [(0, 0)] * len(rles)
    runs = _runs([rle["counts"] for rle in rles]) if rles else []
    for i in order:
        left, mask = _columns(runs[i], height, dtype)
        box = np.s_[left : left + len(mask)]
        # the maximum is what numpy finds soonest
        free = (n for n, layer in enumerate(layers) if not (layer[box] & mask).max(initial=0))
        n = next(free, len(layers))
        if n == len(layers):
            layers.append(np.zeros((width, height), dtype))
            counts.append(0)
        counts[n] += 1
        layers[n][box] |= mask & dtype(counts[n])
        places[i] = n, counts[n]
    rows = np.empty((len(layers), height, width), dtype)
    for layer, turned in zip(layers, rows, strict=True):
        cv2.transpose(layer, turned)  # numpy's takes 7 times as long
    return rows.astype(map_type(max(counts)), copy=False), places


def _columns(runs: np.ndarray, height: int, dtype: type) -> tuple[int, np.ndarray]:
    """Of a mask's run lengths, the first column with a pixel, and the columns from there to the
    last with one, `[w, H]`: all bits of `dtype` set inside, none outside."""
    ends = np.cumsum(runs)
    left, right = ends[0] // height, -(-ends[1::2].max(initial=ends[0]) // height)
    kept = np.diff((ends - left * height).clip(0, (right - left) * height), prepend=0)
    values = np.zeros(len(kept), dtype)
    values[1::2] = np.iinfo(dtype).max
    return left, np.repeat(values, kept).reshape(-1, height)
