"""Decode images with one bound on their size."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from shards.errors import DataError
from shards.format.schema import MAX_PIXELS, Sample

# PIL and OpenCV tell these apart by the same first bytes and read the same size in their headers.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # "JPEG" includes MPO


def decode_image(encoded: bytes | memoryview, name: str) -> np.ndarray:
    """Decode an image, upright by its EXIF orientation.

    PIL reads the header first: OpenCV would allocate up to 2^30 pixels for a file of a few bytes.

    Args:
        encoded: The bytes of the image file.
        name: The image's name in errors.

    Returns:
        RGB `uint8 [H, W, 3]`.

    Raises:
        DataError: The image declares more than MAX_PIXELS pixels or does not decode.
    """
    fix = "leave it out and build the set again"
    try:
        with opened(io.BytesIO(encoded)) as picture:
            width, height = picture.size
    except ValueError as error:
        what = f"the image has no readable header ({error})"
        raise DataError(what, where=name, fix=fix) from error
    image = decode_with_opencv(encoded, cv2.IMREAD_COLOR_RGB)
    if image is None or image.size != 3 * width * height:
        raise DataError("the image does not decode", where=name, fix=fix)
    return image


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture with PIL, which reads its header and decodes nothing yet.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The header is damaged, declares more than MAX_PIXELS pixels or none, or the
            block cannot decode the picture.
    """
    try:
        picture = Image.open(file, formats=_FORMATS)
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"it declares more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # PIL raises almost any class, and its texts can hold addresses
        raise ValueError(type(error).__name__) from error
    with picture:
        if not 0 < picture.width * picture.height <= MAX_PIXELS:
            size = f"{picture.width}x{picture.height}"
            raise ValueError(f"it declares {size} pixels, not 1 to {MAX_PIXELS}")
        try:
            yield picture
        except (ValueError, FileNotFoundError):
            raise
        except Exception as error:
            raise ValueError(type(error).__name__) from error


def decode_with_opencv(encoded: bytes | memoryview, flags: int) -> np.ndarray | None:
    """Return the pixels of a picture whose declared size was checked, or None if it is damaged.

    Args:
        encoded: The bytes of the file.
        flags: OpenCV's flags for decoding.
    """
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # such as more pixels than OpenCV's own limit, or no bytes
        return None


def image_of(sample: Sample) -> np.ndarray:
    """Decode the image of a sample.

    Returns:
        RGB `uint8 [H, W, 3]`.

    Raises:
        DataError: The image does not decode or has another size than the sample's truth.
    """
    image = decode_image(sample.image, sample.key)
    height, width = image.shape[:2]
    if (width, height) != (sample.width, sample.height):
        raise DataError(
            f"the image has {width}x{height} pixels, its truth {sample.width}x{sample.height}",
            where=sample.key,
            fix="build the set again",
        )
    return image
