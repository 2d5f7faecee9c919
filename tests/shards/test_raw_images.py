"""Checks of raw images: the bound on their size, and the repair of their orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.doctor import Doctor, Reject
from shards.format.images import decode_image
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
    assert ("declares more than" in error.value.detail) is not within


def photo(exif: bytes = b"") -> bytes:
    """Return a JPEG of 32x24 pixels with these bytes as its EXIF."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def exif(order: str, *tags: tuple[int, int, bytes], at: int = 8) -> bytes:
    """Return EXIF with a list of orientation tags: type, count, and the four bytes of the value."""
    header = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", at)
    rows = [struct.pack(order + "HHI", 0x0112, *tag[:2]) + tag[2] for tag in tags]
    return b"Exif\0\0" + header + struct.pack(order + "H", len(rows)) + b"".join(rows) + bytes(4)


ODD_EXIF = {
    "nothing but the header": lambda order: b"Exif\0\0",
    "half of a TIFF header": lambda order: exif(order)[:10],
    "no list of tags": lambda order: exif(order)[:14],
    "text": lambda order: b"Exif\0\0orientation: 6",
    "zeros": lambda order: b"Exif\0\0" + bytes(40),
    "BigTIFF": lambda order: b"Exif\0\0" + b"II+\0\x08\0\0\0",
    "tag cut off": lambda order: exif(order, (3, 1, struct.pack(order + "HH", 6, 0)))[:-10],
    "list outside the file": lambda order: exif(order, (3, 1, bytes(4)), at=1 << 20),
    "LONG": lambda order: exif(order, (4, 1, struct.pack(order + "I", 6))),
    "BYTE": lambda order: exif(order, (1, 1, b"\6\0\0\0")),
    "text of a digit": lambda order: exif(order, (2, 2, b"6\0\0\0")),
    "unknown type": lambda order: exif(order, (99, 1, struct.pack(order + "HH", 6, 0))),
    "no value": lambda order: exif(order, (3, 0, struct.pack(order + "HH", 6, 0))),
    "too many values": lambda order: exif(order, (3, 1 << 30, struct.pack(order + "HH", 6, 0))),
    "two values": lambda order: exif(order, (3, 2, struct.pack(order + "HH", 6, 8))),
    "beyond the range": lambda order: exif(order, (3, 1, struct.pack(order + "HH", 9, 0))),
    "two tags": lambda order: exif(
        order, *[(3, 1, struct.pack(order + "HH", value, 0)) for value in (1, 6)]
    ),
    "two tags in the other order": lambda order: exif(
        order, *[(3, 1, struct.pack(order + "HH", value, 0)) for value in (6, 1)]
    ),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("case", ODD_EXIF)
def test_odd_exif_is_read_as_the_stream_reads_it(case, order):
    encoded = photo(ODD_EXIF[case](order))
    for size in (None, (32, 24), (24, 32)):
        doctor = Doctor("a.jpg")
        if size == (24, 32) and decode_image(encoded, "a.jpg").shape[:2] == (24, 32):
            with pytest.raises(Reject, match="finding 3"):
                check_image(encoded, "a.jpg", size, doctor)
            continue
        image, width, height = check_image(encoded, "a.jpg", size, doctor)
        assert decode_image(image, "a.jpg").shape[:2] == (height, width)
        assert size in (None, (width, height))
        assert {finding.code for finding in doctor.findings} <= {4}


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_is_reset_if_the_annotation_fits_the_stored_pixels(order):
    rotated = photo(exif(order, (3, 1, struct.pack(order + "HH", 6, 0))))
    assert Image.open(io.BytesIO(rotated)).getexif()[0x0112] == 6

    image, width, height = check_image(rotated, "a.jpg", (24, 32), Doctor("a.jpg"))
    assert (image, width, height) == (rotated, 24, 32)
    image, width, height = check_image(rotated, "a.jpg", (32, 24), Doctor("a.jpg"))
    assert (width, height) == (32, 24)
    assert Image.open(io.BytesIO(image)).getexif()[0x0112] == 1
    assert sum(old != new for old, new in zip(rotated, image, strict=True)) == 1
