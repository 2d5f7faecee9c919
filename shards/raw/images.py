"""Raw image files and panoptic PNGs: read, check, and return in the terms of the shard format."""

import contextlib
import errno
import io
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from shards.doctor import Doctor, Reject
from shards.format.images import decode_with_opencv, opened
from shards.format.label_maps import size_in
from shards.format.schema import image_ext

# The errors that concern one file. Others, such as those of a network, end the build.
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM)
_ORIENTATION = 0x0112  # the EXIF tag
_SHORT = 3  # its type, a 16-bit integer
_TURNED = (5, 6, 7, 8)  # the orientations that swap width and height
_TURNS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (  # what the orientations 1 to 8 do
    lambda pixels: pixels,
    lambda pixels: pixels[:, ::-1],
    lambda pixels: pixels[::-1, ::-1],
    lambda pixels: pixels[::-1],
    lambda pixels: pixels.T,
    lambda pixels: pixels[::-1].T,
    lambda pixels: pixels[::-1, ::-1].T,
    lambda pixels: pixels[:, ::-1].T,
)
_EXTS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
# How to decode an image that is only checked. Damage to a JPEG shows in its entropy-coded data,
# which a decode to an eighth of the size in gray reads completely as well, for less time.
CHECK_FLAGS: dict[str, int] = dict.fromkeys(("JPEG", "MPO"), cv2.IMREAD_REDUCED_GRAYSCALE_8)


def read_image(
    path: Path, size: tuple[int, int] | None, doctor: Doctor, *, mismatch: int = 3
) -> tuple[bytes, int, int]:
    """Read an image file and check it as `check_image` does."""
    try:
        image = path.read_bytes()
    except OSError as error:
        if error.errno not in _LOST:
            raise
        is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        why = "is missing" if is_missing else f"cannot be read ({error.strerror})"
        raise Reject(7, f"{path.name} {why}") from None
    return check_image(image, path.name, size, doctor, mismatch=mismatch)


def check_image(
    image: bytes, name: str, size: tuple[int, int] | None, doctor: Doctor, *, mismatch: int = 3
) -> tuple[bytes, int, int]:
    """Check that an image decodes and fits its annotation.

    Args:
        image: The encoded image.
        name: The file's name.
        size: The width and height of the annotation, if known.
        doctor: Receives the findings.
        mismatch: The number of the finding for an image of another size than `size`: 3 if an
            annotation declares the size, 9 if a map has it.

    Returns:
        The image's bytes, and its width and height as displayed, that is after its EXIF
        orientation is applied. The bytes are those given, except for a JPEG with a rotation whose
        annotation fits only its pixels as stored: its orientation tag is set to 1. Damaged EXIF
        has no orientation.

    Raises:
        Reject: The image does not decode, has over MAX_PIXELS pixels, or has another size.
    """
    try:
        with opened(io.BytesIO(image)) as picture:
            kind, mode, stored = picture.format or "", picture.mode, picture.size
            exif = picture.info.get("exif", b"")
    except ValueError as error:
        raise Reject(1, f"no decoder can read it ({error})") from None
    shown = stored
    if (orientation := _orientation(image, exif)) != 1:
        doctor.note(4, f"its EXIF orientation is {orientation}")
        shown = (stored[1], stored[0]) if orientation in _TURNED else stored
        if size == stored != shown and kind == "JPEG":
            reset = _reset_orientation(image, exif)
            if _orientation(reset, exif) == 1:
                image, shown = reset, stored
    if size is not None and size != shown:
        raise Reject(mismatch, f"the image is {_by(shown)}, its truth {_by(size)}")
    flags = CHECK_FLAGS.get(kind, cv2.IMREAD_COLOR)
    if decode_with_opencv(image, flags) is None:
        truncated = kind in _ENDS and not image.endswith(_ENDS[kind])
        raise Reject(2 if truncated else 1, f"the {kind} does not decode")
    deep = kind == "PNG" and image[24] == 16  # byte 24 of a PNG is the number of bits per channel
    if deep or mode not in ("RGB", "P"):
        doctor.note(5, f"its mode is {mode}{', 16 bit' * deep}")
    if _EXTS.get(kind) != image_ext(name):
        doctor.note(6, f"it is a {kind}")
    return image, *shown


def _orientation(image: bytes, exif: bytes) -> int:
    """Return the orientation that OpenCV applies, 1 if it applies none or cannot decode the image.

    Decoders disagree about damaged tags and about tags of an odd type, and shards are decoded with
    OpenCV. Its result is therefore compared with the pixels as stored.
    """
    tags = [struct.pack(order + "H", _ORIENTATION) for order in "<>"]
    plain = [struct.pack(order + "HHIH", _ORIENTATION, _SHORT, 1, 1) for order in "<>"]
    found = sum(map(exif.count, tags))
    if not found or (found == 1 and any(tag in exif for tag in plain)):
        return 1
    stored = decode_with_opencv(image, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    shown = decode_with_opencv(image, cv2.IMREAD_GRAYSCALE)
    if stored is None or shown is None:
        return 1
    turns = enumerate(_TURNS, 1)
    return next((number for number, turn in turns if np.array_equal(turn(stored), shown)), 1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _reset_orientation(image: bytes, exif: bytes) -> bytes:
    """Set the EXIF orientation of a JPEG to 1 and change no other byte."""
    # EXIF is a TIFF file: its byte order, at byte 4 the offset of the list of tags, and in the list
    # a count and 12 bytes per tag: number, type, count, value.
    tiff = image.index(exif[:20]) + len(b"Exif\0\0")  # a second segment may follow
    order = "<" if image[tiff : tiff + 2] == b"II" else ">"
    entries = tiff + struct.unpack_from(order + "I", image, tiff + 4)[0]
    (count,) = struct.unpack_from(order + "H", image, entries)
    reset = struct.pack(order + "HHIHH", _ORIENTATION, _SHORT, 1, 1, 0)
    for at in range(entries + 2, entries + 2 + 12 * count, 12):
        if image[at : at + 2] == reset[:2]:
            image = image[:at] + reset + image[at + 12 :]
    return image


def read_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the segment ids of a panoptic PNG, R + 256 G + 65536 B.

    Args:
        path: The PNG.
        size: The image's width and height.

    Returns:
        The ids, `uint32 [H, W]`.

    Raises:
        Reject: The map is missing, damaged, or of another size.
    """
    picture = read_map(path, size, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    # View the four bytes of a pixel as one integer and clear the fourth, instead of three
    # multiplications over the whole map.
    ids = cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]
    ids &= 0xFFFFFF
    return ids


def read_map(path: Path, size: tuple[int, int], flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    """Read a map with OpenCV.

    Args:
        path: The map.
        size: The image's width and height.
        flags: OpenCV's flags for decoding.

    Raises:
        Reject: The map is missing, damaged, or of another size.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        declared = size_in(file.read(24), path.name)
        if declared != size:  # reject a huge map before it is decoded
            raise Reject(9, f"{path.name} is {_by(declared)}, the image {_by(size)}")
    picture = decode_with_opencv(path.read_bytes(), flags) if path.is_file() else None
    if picture is None:
        raise Reject(8, f"{path.name} is {'unreadable' if path.is_file() else 'missing'}")
    height, width = picture.shape[:2]
    if (width, height) != size:
        raise Reject(9, f"{path.name} is {_by((width, height))}, the image {_by(size)}")
    return picture
