"""Checks of raw images: the bound on their size, and the repair of their orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.doctor import Doctor, Reject
from shards.format.schema import MAX_PIXELS
from shards.raw.images import check_image


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares a size and contains no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


@pytest.mark.parametrize("rows", [1 << 14, (1 << 14) + 1])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_only_images_of_more_than_max_pixels_are_rejected_by_their_header(rows):
    columns = MAX_PIXELS >> 14
    with pytest.raises(Reject) as error:
        check_image(png_header(columns, rows), "a.png", (1, 1), Doctor("a.png"))
    within = columns * rows <= MAX_PIXELS
    assert error.value.code == (3 if within else 1)  # 3: its size differs from the annotation
    assert ("DecompressionBombError" in error.value.detail) is not within


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_is_reset_if_the_annotation_fits_the_stored_pixels(order):
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    tags = struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", exif=b"Exif\0\0" + tiff + tags)
    rotated = stream.getvalue()
    assert Image.open(io.BytesIO(rotated)).getexif()[0x0112] == 6

    image, width, height = check_image(rotated, "a.jpg", (24, 32), Doctor("a.jpg"))
    assert (image, width, height) == (rotated, 24, 32)
    image, width, height = check_image(rotated, "a.jpg", (32, 24), Doctor("a.jpg"))
    assert (width, height) == (32, 24)
    assert Image.open(io.BytesIO(image)).getexif()[0x0112] == 1
    assert sum(old != new for old, new in zip(rotated, image, strict=True)) == 1
