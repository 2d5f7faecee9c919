"""Files of a few bytes that declare gigabytes: refused by their headers, before memory is taken."""

import io
import struct
import tarfile
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.doctor import Doctor, Reject
from shards.errors import DataError
from shards.format.codec import decode_map
from shards.format.images import decode_image
from shards.format.label_maps import labels_in
from shards.format.schema import MAX_PIXELS
from shards.format.tar import members, unpack
from shards.format.third_party_tar import third_party_samples
from shards.raw.images import check_image, read_ids

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)


def encoded(kind: str) -> bytearray:
    return bytearray(cv2.imencode(kind, PIXELS)[1].tobytes())


def png(width: int, height: int) -> bytes:
    data = encoded(".png")
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def jpeg(width: int, height: int, thumbnail: bool = False) -> bytes:
    data = encoded(".jpg")
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    if thumbnail:  # EXIF with a small picture inside must not be taken for the picture
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + bytes(encoded(".jpg"))
        data[2:2] = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return bytes(data)


def bmp(width: int, height: int) -> bytes:
    data = encoded(".bmp")
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3) + b"\x3b"


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (279, 1)]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + rows + bytes(4)


def webp(width: int, height: int) -> bytes:
    data = encoded(".webp")  # the canvas of the extended format, before the frame
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + bytes(data[12:])
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    "png": png(30_000, 30_000),
    "png of one row": png(2**31 - 1, 1),
    "png of one pixel more": png(MAX_PIXELS // 1024, 1025),
    "jpeg": jpeg(16_000, 65_500),
    "jpeg with a thumbnail": jpeg(16_000, 65_500, thumbnail=True),
    "bmp": bmp(30_000, 30_000),
    "bmp upside down": bmp(30_000, -30_000),
    "gif": gif(65_535, 65_535),
    "tiff": tiff(60_000, 60_000),
    "webp": webp(16_384, 16_385),
    "ppm": b"P6 60000 60000 255\n",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_no_picture_beyond_the_limit_is_decoded(name: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("cv2.imdecode", None)  # decoding would fail
    monkeypatch.setattr("cv2.imread", None)
    blob, path = BOMBS[name], tmp_path / "map.png"
    path.write_bytes(blob)
    with pytest.raises(DataError, match="no readable header"):
        decode_image(blob, "a")
    with pytest.raises(Reject, match="finding 1,"):
        check_image(blob, "a.png", None, Doctor("a.png"))
    with pytest.raises(DataError, match="not a PNG of at most"):
        decode_map(blob, "a")
    for read in (
        lambda: labels_in(blob, "a.png", (32, 24)),
        lambda: labels_in(blob, "a.png", (30_000, 30_000)),
        lambda: read_ids(path, (32, 24)),
    ):
        with pytest.raises(Reject):
            read()


def test_a_map_of_colors_is_not_a_map_of_integers() -> None:
    with pytest.raises(DataError, match="the map does not decode"):
        decode_map(bytes(encoded(".png")), "a")


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a tar header with the field `size` as given."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


OCTAL = b"77777777777\0"  # 8 GiB
BASE_256 = b"\x80" + b"\x7f" * 11
NEGATIVE = b"\xff" * 10 + b"\xfe\0"  # -512
SIZES = {"8 GiB": OCTAL, "2^87": BASE_256, "-512": NEGATIVE, "no number": b"x" * 12}
PAX = tarfile.XHDTYPE
KINDS = {"file": b"0", "PAX header": PAX, "long name": tarfile.GNUTYPE_LONGNAME}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_size_in_a_tar_header_is_not_believed(size: str, kind: str) -> None:
    blob = header("a.jpg", b"%011o\0" % 3) + b"abc".ljust(512, b"\0")
    blob += header("a.png", SIZES[size], KINDS[kind]) + bytes(2048)
    for read in (
        lambda: list(third_party_samples(io.BytesIO(blob), "a.tar")),
        lambda: members(blob),
    ):
        with pytest.raises(DataError):
            read()
    if kind != "long name":  # `unpack` takes every header that is not PAX's for that of a file
        with pytest.raises(DataError, match=r"damaged tar header|PAX header"):
            unpack(blob)


def test_headers_without_end_are_refused() -> None:
    """tarfile reads a header for another header by recursion."""
    blob = b"".join(header("x", b"%011o\0" % 0, PAX) for _ in range(5000))
    with pytest.raises(DataError, match="not an uncompressed tar file"):
        list(third_party_samples(io.BytesIO(blob), "a.tar"))


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tiff"])
def test_pictures_of_the_usual_formats_are_decoded(kind: str) -> None:
    blob = bytes(encoded(kind))
    assert decode_image(blob, "a").shape == PIXELS.shape
    assert check_image(blob, "a.png", (32, 24), Doctor("a.png")) == (blob, 32, 24)


def test_a_photograph_with_a_second_picture_is_decoded() -> None:
    first, second = (Image.fromarray(PIXELS) for _ in range(2))
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[second])
    assert decode_image(stream.getvalue(), "a").shape == PIXELS.shape
