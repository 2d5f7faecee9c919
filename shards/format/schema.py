"""One sample, schema 1: what a source yields, which members a shard holds of it, and back.

Members of a sample (`ext -> bytes`); a shard set has the same ones for every sample:

- the image, its bytes untouched (`jpg`, or one other extension for the whole set);
- `json`: `schema image_id file_name source width height`, `licence` and `attribution` ("" where
  the publisher names none), `segments` and `instances` where there is such truth. `category` is the
  class index in the manifest's taxonomy, `area` and `bbox` (x, y, w, h in pixels) are the
  publisher's, floats always: readers that infer types see the same ones in every sample;
- `segments.png`: panoptic truth `[H, W]`, 0 = void, n = n-th entry of `segments`;
- `instances.png`: instance truth that may overlap, `[layers * H, W]`; an instance is where its
  layer equals its `value`, 0 = none;
- `semantic.png`: semantic truth `[H, W]` where it is its own, 0 = ignored, c + 1 = class c; else it
  follows from the segments.

Maps are 8 bit, 16 bit where a value is past 255. Nothing that declares more than MAX_PIXELS pixels
is decoded.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, TypedDict

import cv2
import numpy as np

from shards.errors import DataError
from shards.files import leaves_folder

SCHEMA = 1
TASKS = ("panoptic", "instance", "semantic")
SEGMENTS = "segments.png"
INSTANCES = "instances.png"
SEMANTIC = "semantic.png"
IMAGES = ("jpg", "png", "webp", "bmp")
MAX_VALUE = 65535  # of a 16-bit map
MAX_PIXELS = 1 << 28  # of an image, or of a member with all its layers
KEY_BYTES = 100 - len("." + INSTANCES)  # a member's name must fit USTAR's name field

_PNG = (
    # run lengths: 3.5 times as fast as level 6, for 7 % more bytes
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),  # label maps gain nothing by filters
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A panoptic segment: the publisher's id, class index, crowd flag, area, bbox (x, y, w, h)."""

    id: int
    category: int
    iscrowd: int
    area: float
    bbox: list[float]


@dataclass(frozen=True, slots=True)
class Instance(Segment):
    """An instance: its mask is `layers[layer] == value`."""

    layer: int
    value: int


@dataclass(frozen=True, slots=True)
class Record:
    """A sample as a source yields it. A truth that the source does not have is None.

    `segments_map` and `semantic` are `[H, W]`, `layers` `[n, H, W]` with n >= 1, all uint8 or
    uint16.
    """

    key: str
    image: bytes
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
    rights: dict[str, str] = field(default_factory=dict)  # licence, attribution

    @property
    def empty(self) -> bool:
        """Whether it has no truth at all: no segment, no instance, no pixel of a class."""
        labeled = self.semantic is not None and self.semantic.any()
        return not (self.segments or self.instances or labeled)


class Sample(TypedDict):
    """A decoded sample; the image stays encoded. A truth that the set does not have is None."""

    json: dict[str, Any]
    image: bytes | memoryview
    segments: np.ndarray | None  # [H, W]
    layers: np.ndarray | None  # [n, H, W]
    semantic: np.ndarray | None  # [H, W]


def key_of(file_name: str) -> str:
    """The key of a raw file name: its relative stem with '.' -> '_'.

    Raises DataError for a name that could leave the data set's folder or not fit a tar header.
    """
    path = PurePosixPath(str(file_name))
    hostile = leaves_folder(str(file_name))
    if file_name != str(file_name) or not path.name or hostile or not file_name.isprintable():
        raise DataError(f"file_name {file_name!r} is not a plain relative path; rename the file")
    key = str(path.with_suffix("")).replace(".", "_")
    if len(key.encode()) > KEY_BYTES:
        raise DataError(f"file_name {file_name!r} is too long; keep it to {KEY_BYTES} bytes")
    return key


def image_ext(file_name: str) -> str:
    """The member extension of an image file: lower case, `jpg` for every spelling of JPEG."""
    ext = PurePosixPath(file_name).suffix[1:].lower().replace("jpeg", "jpg")
    if ext not in IMAGES:
        raise DataError(f"file_name {file_name!r} is not an image of {IMAGES}; convert it")
    return ext


def rights_of(licence: Mapping[str, str]) -> dict[str, str]:
    """What a sample says of its set's licence: `url` (or `name`), and `attribution`."""
    said = licence.get("url") or licence.get("name"), licence.get("attribution")
    return {name: value for name, value in zip(RIGHTS, said, strict=True) if value}


def map_type(largest: int) -> type[np.unsignedinteger]:
    """The type of a map with values up to `largest`. Raises DataError past 16 bit."""
    if largest > MAX_VALUE:
        raise DataError(f"{largest} segments in one map, at most {MAX_VALUE} fit; split the image")
    return np.uint8 if largest <= 255 else np.uint16


def png_size(png: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height that a PNG's header declares, before anything is decoded; None: no PNG."""
    if len(png) < 24 or png[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return None
    return struct.unpack_from(">II", png, 16)


def record_of(key: str, members: dict[str, bytes]) -> Record:
    """The record that `encode` made the members of. Raises DataError where `decode` does."""
    sample = decode(members)
    document = sample["json"]
    try:
        return Record(
            key=key,
            image=sample["image"],
            ext=next(ext for ext in members if ext in IMAGES),
            **{name: document[name] for name in _PLAIN},
            segments=_entries(document, "segments", Segment),
            segments_map=sample["segments"],
            instances=_entries(document, "instances", Instance),
            layers=sample["layers"],
            semantic=sample["semantic"],
            rights={name: document[name] for name in RIGHTS if document.get(name)},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the json member lacks or has too much ({error!r}); rebuild it") from error


def _entries(document: dict[str, Any], name: str, kind: type[Segment]) -> list[Segment] | None:
    return [kind(**entry) for entry in document[name]] if name in document else None


def encode(record: Record) -> dict[str, bytes]:
    """The members of a sample. A pure function of the record for equal library versions."""
    members = {record.ext: record.image}
    if record.segments is not None:
        members[SEGMENTS] = _encode_map(record.segments_map)
    if record.instances is not None:
        members[INSTANCES] = _encode_map(record.layers.reshape(-1, record.width))
    if record.semantic is not None:
        members[SEMANTIC] = _encode_map(record.semantic)
    document = _document(record)
    members["json"] = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return members


def sample_of(record: Record) -> Sample:
    """What `decode` makes of the record's members."""
    return Sample(
        json=_document(record),
        image=record.image,
        segments=record.segments_map,
        layers=record.layers,
        semantic=record.semantic,
    )


def decode(members: dict[str, bytes] | dict[str, memoryview]) -> Sample:
    """The inverse of `encode`. Raises DataError for a damaged or foreign sample."""
    try:
        document = json.loads(bytes(members["json"]))
        schema, shape = document["schema"], (document["height"], document["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"a sample's json member is damaged ({error!r}); rebuild it") from error
    if schema != SCHEMA:
        raise DataError(f"sample of schema {schema}, this version reads {SCHEMA}; rebuild the set")
    images = [ext for ext in members if ext in IMAGES]
    if len(images) != 1:
        raise DataError(f"{document['file_name']}: members {sorted(members)}, not one image")
    return Sample(
        json=document,
        image=members[images[0]],
        segments=_decode_flat(members, SEGMENTS, shape),
        layers=_decode_map(members, INSTANCES, shape),
        semantic=_decode_flat(members, SEMANTIC, shape),
    )


RIGHTS = ("licence", "attribution")
_PLAIN = ("file_name", "height", "image_id", "source", "width")


def _document(record: Record) -> dict[str, Any]:
    """What the json member holds."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **{name: getattr(record, name) for name in _PLAIN},
        **{name: record.rights.get(name, "") for name in RIGHTS},
    }
    for name in ("segments", "instances"):
        if (entries := getattr(record, name)) is not None:
            document[name] = [_plain(entry) for entry in entries]
    return document


def _plain(entry: Segment) -> dict[str, Any]:
    """`asdict` without its copies, numbers of one type whatever the publisher's."""
    plain = {one.name: getattr(entry, one.name) for one in fields(entry)}
    return plain | {"area": float(entry.area), "bbox": list(map(float, entry.bbox))}


def _encode_map(values: np.ndarray) -> bytes:
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    return cv2.imencode(".png", values, _PNG)[1].tobytes()


def _decode_map(members: dict[str, bytes], ext: str, shape: tuple[int, int]) -> np.ndarray | None:
    """A map member as layers `[n, H, W]`, or None where the sample has no such member."""
    if ext not in members:
        return None
    declared = png_size(members[ext])
    if declared is None or declared[0] * declared[1] > MAX_PIXELS:
        raise DataError(f"{ext} is no PNG of at most {MAX_PIXELS} pixels; rebuild the shard")
    values = cv2.imdecode(np.frombuffer(members[ext], np.uint8), cv2.IMREAD_UNCHANGED)
    height, width = shape
    if values is None or values.ndim != 2 or values.shape[1] != width or len(values) % height:
        raise DataError(f"{ext} is not a map of {width}x{height} pixels; rebuild the shard")
    return values.reshape(-1, height, width)


def _decode_flat(members: dict[str, bytes], ext: str, shape: tuple[int, int]) -> np.ndarray | None:
    """A map member of one layer as `[H, W]`, or None."""
    layers = _decode_map(members, ext, shape)
    if layers is None:
        return None
    if len(layers) != 1:
        raise DataError(f"{ext} has {len(layers)} layers, not one; rebuild the shard")
    return layers[0]
