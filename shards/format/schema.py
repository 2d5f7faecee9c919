"""One sample of schema 1: its type, its names, and the rules that every reader relies on.

A shard holds each sample as members (extension -> bytes). All samples of a shard set have the same
members (`shards.format.codec` reads and writes them):

- The image, with its bytes untouched: `jpg`, or one other extension for the whole set.
- `json`: `schema`, `image_id`, `file_name`, `source`, `width`, `height`, `licence` and
  `attribution` ("" if the publisher names none), and `segments` and `instances` if the set has that
  truth. `category` is the class index in the manifest's taxonomy. `area` and `bbox` (x, y, width,
  height in pixels) are the publisher's and are always floats, because readers that infer types
  must see the same types in every sample.
- `segments.png`: panoptic truth `[H, W]`. 0 is void, and n is the n-th entry of `segments`.
- `instances.png`: instance truth, which may overlap, `[layers * H, W]`. An instance covers the
  pixels of its layer that equal its `value`; 0 is none.
- `semantic.png`: semantic truth `[H, W]`. 0 is ignored, and c + 1 is class c. A set without it has
  the semantic truth that follows from the segments.

Maps have 8 bits, or 16 bits if a value exceeds 255. Anything that declares more than MAX_PIXELS
pixels is never decoded.
"""

import re
import struct
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from shards.doctor import Reject
from shards.errors import DataError
from shards.files import leaves_folder

SCHEMA = 1
TASKS = ("panoptic", "instance", "semantic")
SEGMENTS = "segments.png"
INSTANCES = "instances.png"
SEMANTIC = "semantic.png"
IMAGES = ("jpg", "png", "webp", "bmp")
RIGHTS = ("licence", "attribution")
MAX_VALUE = 65535  # the largest value of a 16-bit map
MAX_PIXELS = 1 << 28  # the limit for an image, and for a map with all its layers
PART_BYTES = 255  # the limit of file systems for the name of a file or a folder
MAX_ROWS = 1_000_000  # libpng's limit for the height of a map with all its layers
MAX_SAMPLE_BYTES = 16 * MAX_PIXELS  # more than an image and three maps of this size can take
NAME_BYTES = 1024  # the limit for the path of an image below its folder
KEY_BYTES = PART_BYTES + 1 + NAME_BYTES  # in an index, which may put the name of a tar before it
JPEG = ("jpg", "jpeg", "jpe", "jfif")  # the extensions of JPEG files

# PIL raises DecompressionBombError above twice its limit, which is global to the process.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
# It warns about damaged EXIF without naming the file.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Segment:
    """A panoptic segment.

    Attributes:
        id: The publisher's id, which differs from the segment's id in the map. It may be text only
            for an instance.
        category: The class index in the taxonomy.
        iscrowd: 1 if the segment is a crowd, 0 otherwise.
        area: The publisher's area in pixels.
        bbox: x, y, width, height in pixels.
    """

    id: int | str
    category: int
    iscrowd: int
    area: float
    bbox: list[float]


@dataclass(frozen=True, slots=True)
class Instance(Segment):
    """An instance, whose mask is `layers[layer] == value`."""

    layer: int
    value: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as it is encoded into a shard and decoded from it; missing truth is None.

    The entries and their maps come together: `segments` with `segments_map`, and `instances` with
    `layers`. Only a sample that was read from its JSON alone has entries without maps.

    Attributes:
        key: The name of the sample in its shard.
        image: The encoded image.
        ext: The extension of the image's member.
        file_name: The publisher's name of the image file.
        source: The name of the source, such as "coco".
        image_id: The publisher's id of the image.
        width: The width of the image and of its maps in pixels.
        height: The height in pixels.
        segments: The panoptic segments.
        segments_map: `uint8` or `uint16 [H, W]`; segment n (from 1) has the value n, 0 is void.
        instances: The instances.
        layers: `uint8` or `uint16 [L, H, W]` with L >= 1.
        semantic: `uint8` or `uint16 [H, W]`; class c has the value c + 1, 0 is ignored.
        rights: The values of RIGHTS that are known.
    """

    key: str
    image: bytes | memoryview
    ext: str
    file_name: str
    source: str
    image_id: str
    width: int
    height: int
    segments: list[Segment] | None = None
    segments_map: np.ndarray | None = None
    instances: list[Instance] | None = None
    layers: np.ndarray | None = None
    semantic: np.ndarray | None = None
    rights: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether the sample has no segment, no instance, and no pixel of a class."""
        labeled = self.semantic is not None and self.semantic.any()
        return not (self.segments or self.instances or labeled)

    def panoptic(self) -> Iterator[tuple[int, Segment]]:
        """Yield each segment with its id in `segments_map`."""
        return enumerate(self.segments or (), start=1)

    def instances_or_things(self, things: Sequence[bool]) -> list[Instance]:
        """Return the instances, or the thing segments if the sample has no instance truth.

        Args:
            things: For each class, whether it is a thing.

        Returns:
            Entries whose masks are in `instance_layers`, crowds included.
        """
        if self.instances is not None:
            return self.instances
        return [
            Instance(s.id, s.category, s.iscrowd, s.area, s.bbox, layer=0, value=n)
            for n, s in self.panoptic()
            if things[s.category]
        ]

    @property
    def instance_layers(self) -> np.ndarray:
        """The maps `[L, H, W]` of the entries that `instances_or_things` returns."""
        if self.layers is not None:
            return self.layers
        assert self.segments_map is not None, f"{self.key} has neither instances nor segments"
        return self.segments_map[None]

    def classes(self) -> np.ndarray:
        """Return the semantic truth, or derive it from the segments if the sample has none.

        Returns:
            `uint8` or `uint16 [H, W]`: c + 1 for class c, 0 for ignored pixels.
        """
        if self.semantic is not None:
            return self.semantic
        assert self.segments_map is not None, f"{self.key} has no semantic and no panoptic truth"
        classes = np.zeros(len(self.segments or ()) + 1, np.uint16)
        for n, segment in self.panoptic():
            classes[n] = segment.category + 1
        return classes[self.segments_map]


def key_of(file_name: str) -> str:
    """Return the key for a raw file name: its relative stem with "." replaced by "_".

    A first folder such as `__crops__` keeps one "_" at its start, because webdataset takes the
    files in it for metadata and skips them.

    Raises:
        DataError: The name could leave the data set's folder, contains control characters, is not
            Unicode, or is too long.
    """
    path = PurePosixPath(str(file_name))
    if file_name != str(file_name) or not path.name or leaves_folder(file_name):
        raise DataError(f"file_name {file_name!r} is not a plain relative path", fix="rename it")
    if not is_printable(file_name):
        raise DataError(
            f"file_name {file_name!r} contains control characters or is not UTF-8", fix="rename it"
        )
    if max(map(_bytes, path.parts)) > PART_BYTES or _bytes(file_name) > NAME_BYTES:
        raise DataError(
            f"file_name {file_name!r} is too long",
            fix=f"shorten it to {NAME_BYTES} bytes, and each folder to {PART_BYTES}",
        )
    key = str(path.with_suffix("")).replace(".", "_")
    return "_" + key.lstrip("_") if is_metadata(f"{key}.json") else key


def is_printable(name: str) -> bool:
    """Return whether a name can be stored as UTF-8 and has no control characters.

    Spaces of every width and the invisible characters of emoji and of scripts are common in names.
    """
    return name.isprintable() or not any(unicodedata.category(one) in ("Cc", "Cs") for one in name)


def is_metadata(name: str) -> bool:
    """Return whether webdataset skips a member of this name, because it starts as `__x__` does."""
    return re.match("__[^/]*__($|/)", name) is not None


def _bytes(name: str) -> int:
    return len(name.encode())


def image_ext(file_name: str) -> str:
    """Return the member extension for an image file: lower case, and `jpg` for any JPEG.

    Raises:
        DataError: The extension is not one of IMAGES.
    """
    ext = PurePosixPath(file_name).suffix[1:].lower()
    ext = "jpg" if ext in JPEG else ext
    if ext not in IMAGES:
        raise DataError(
            f"file_name {file_name!r} has none of the extensions {', '.join(IMAGES)}",
            fix="convert the image",
        )
    return ext


def fits(width: int, rows: int) -> bool:
    """Return whether a map of this size, with all its layers, can be written and decoded."""
    return rows <= MAX_ROWS and width * rows <= MAX_PIXELS


def check_fits(width: int, rows: int) -> None:
    """Check the size of a map that is to be written.

    Raises:
        Reject: The map could not be decoded.
    """
    if not fits(width, rows):
        raise Reject(
            23,
            f"a map with all its layers of overlapping instances has {width}x{rows} pixels, and at "
            f"most {MAX_PIXELS} pixels and {MAX_ROWS} rows can be decoded",
        )


def rights_of(licence: Mapping[str, str]) -> dict[str, str]:
    """Return the rights of a sample from a license: its `url` or `name`, and `attribution`."""
    values = licence.get("url") or licence.get("name"), licence.get("attribution")
    return {name: value for name, value in zip(RIGHTS, values, strict=True) if value}


def map_type(largest: int) -> type[np.uint8] | type[np.uint16]:
    """Return the type of a map whose values reach `largest`.

    Raises:
        Reject: The values do not fit 16 bits.
    """
    if largest > MAX_VALUE:
        raise Reject(23, f"one map holds {largest} segments, and at most {MAX_VALUE} fit")
    return np.uint8 if largest <= 255 else np.uint16


def png_size(png: bytes | memoryview) -> tuple[int, int] | None:
    """Return the width and height in a PNG's header, or None if the bytes are not a PNG.

    Nothing is decoded, so that a huge image can be rejected first.
    """
    if len(png) < 24 or png[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return None
    return struct.unpack_from(">II", png, 16)
