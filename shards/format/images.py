"""Decode images with one bound on their size."""

import io

import cv2
import numpy as np
from PIL import Image

from shards.errors import DataError
from shards.format.schema import MAX_PIXELS, Sample


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
        with Image.open(io.BytesIO(encoded)) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise DataError(
            f"the image declares more than {MAX_PIXELS} pixels", where=name, fix=fix
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"the image has no readable header ({error})", where=name, fix=fix
        ) from error
    if width * height > MAX_PIXELS:
        raise DataError(
            f"the image declares {width}x{height} pixels, more than {MAX_PIXELS}",
            where=name,
            fix=fix,
        )
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DataError("the image does not decode", where=name, fix=fix)
    return image


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
