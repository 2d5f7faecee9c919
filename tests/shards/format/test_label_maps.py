"""The integers of a map are the samples of its PNG, for every color type and number of bits."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.doctor import Reject
from shards.format.label_maps import labels_in

GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
SIZE = 7, 5


def png(values: np.ndarray, bits: int, color: int) -> bytes:
    """Return a PNG of these samples `[H, W]` or `[H, W, C]`, written from the specification."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    height, width = values.shape[:2]
    rows = b""
    for row in values.reshape(height, -1).tolist():
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(255, 255 - 3 * 2 ** min(bits, 6), -1)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette * (color == PALETTE)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def numbers(bits: int) -> np.ndarray:
    return np.arange(35).reshape(5, 7) * (257 if bits == 16 else 1) % 2**bits


def channels(values: np.ndarray, count: int, alpha: int | None) -> np.ndarray:
    layers = [values] * count + ([] if alpha is None else [np.full_like(values, alpha)])
    return np.stack(layers, axis=-1)


@pytest.mark.parametrize(
    ("color", "bits"),
    [
        *((GRAY, bits) for bits in (1, 2, 4, 8, 16)),
        *((PALETTE, bits) for bits in (1, 2, 4, 8)),
        *((color, bits) for color in (RGB, GRAY_ALPHA, RGB_ALPHA) for bits in (8, 16)),
    ],
)
def test_samples_are_never_scaled(color, bits):
    values = numbers(bits) % 64 if color == PALETTE else numbers(bits)
    alpha = 2**bits - 1 if color in (GRAY_ALPHA, RGB_ALPHA) else None
    count = 3 if color in (RGB, RGB_ALPHA) else 1
    read = labels_in(png(channels(values, count, alpha), bits, color), "a.png", SIZE)
    assert read.tolist() == values.tolist()
    assert read.dtype == (np.uint16 if bits == 16 else np.uint8)


@pytest.mark.parametrize("bits", [8, 16])
def test_colors_and_transparent_pixels_are_no_labels(bits):
    values, opaque = numbers(bits), 2**bits - 1
    colors = np.stack([values, values, values * 0], axis=-1)
    for content, color, why in (
        (colors, RGB, "3 channels"),
        (channels(values, 1, opaque - 1), GRAY_ALPHA, "transparent pixels"),
        (channels(values, 3, 0), RGB_ALPHA, "transparent pixels"),
    ):
        with pytest.raises(Reject, match=why) as error:
            labels_in(png(content, bits, color), "a.png", SIZE)
        assert error.value.code == 8


def test_three_channels_are_rgb_of_8_bits():
    colors = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    assert labels_in(png(colors, 8, RGB), "a.png", SIZE, 3).tolist() == colors.tolist()
    with_alpha = np.concatenate([colors, np.full((5, 7, 1), 255)], axis=-1)
    assert labels_in(png(with_alpha, 8, RGB_ALPHA), "a.png", SIZE, 3).tolist() == colors.tolist()
    for content, bits, color in ((colors, 16, RGB), (numbers(8), 8, GRAY)):
        with pytest.raises(Reject, match="not RGB of 8 bits"):
            labels_in(png(content, bits, color), "a.png", SIZE, 3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 100}),
        ("WebP", {"quality": 50}),
        ("WebP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
    ],
)
def test_other_formats_are_named(kind, options):
    stream = io.BytesIO()
    Image.fromarray(numbers(8).astype(np.uint8)).save(stream, kind, **options)
    with pytest.raises(Reject, match=rf"a\.png is a {kind}, not a PNG; .* save it as PNG") as error:
        labels_in(stream.getvalue(), "a.png", SIZE)
    assert error.value.code == 8


@pytest.mark.parametrize(("bits", "color"), [(8, GRAY), (4, GRAY), (16, RGB), (8, RGB_ALPHA)])
def test_a_truncated_map_is_unreadable(bits, color):
    count = {GRAY: 1, RGB: 3, RGB_ALPHA: 4}[color]
    noise = np.random.default_rng(0).integers(0, 2**bits, (50, 70, count))
    whole = png(noise, bits, color)
    with pytest.raises(Reject, match="unreadable"):
        labels_in(whole[: len(whole) // 2], "a.png", (70, 50))
