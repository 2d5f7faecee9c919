"""Encode a sample as the members of a shard, and decode it again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

from shards.checked import checked
from shards.errors import DataError
from shards.files import parse_json
from shards.format.images import decode_with_opencv
from shards.format.schema import (
    IMAGES,
    INSTANCES,
    MAX_PIXELS,
    MAX_ROWS,
    RIGHTS,
    SCHEMA,
    SEGMENTS,
    SEMANTIC,
    Instance,
    Sample,
    Segment,
    check_fits,
    fits,
    png_size,
)

Members = Mapping[str, bytes | memoryview]

_REBUILD = "rebuild the shard"
_PLAIN = ("file_name", "height", "image_id", "source", "width")  # JSON fields copied as they are
_PNG = (
    # Run lengths (level 1) encode 3.5 times as fast as level 6 and take 7 % more bytes.
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),  # filters do not help label maps
)


def encode(sample: Sample) -> dict[str, bytes]:
    """Return the members of a sample.

    Equal samples give equal bytes for equal versions of the libraries.

    Raises:
        Reject: A map with all its layers is too large.
    """
    members = {sample.ext: bytes(sample.image)}
    if sample.segments_map is not None:
        members[SEGMENTS] = _encode_map(sample.segments_map)
    if sample.layers is not None:
        members[INSTANCES] = _encode_map(sample.layers.reshape(-1, sample.width))
    if sample.semantic is not None:
        members[SEMANTIC] = _encode_map(sample.semantic)
    members["json"] = json.dumps(_document(sample), sort_keys=True, separators=(",", ":")).encode()
    return members


def decode(key: str, members: Members) -> Sample:
    """Return the sample that `encode` made the members of; its image stays encoded.

    Raises:
        DataError: The members are damaged, or are not those of a sample of this schema.
    """
    images = [ext for ext in members if ext in IMAGES]
    if len(images) != 1 or "json" not in members:
        raise DataError(
            f"the members {', '.join(sorted(members))} are not one image and its json",
            where=key,
            fix=_REBUILD,
        )
    values = _values(key, members["json"])
    shape = values["height"], values["width"]
    return Sample(
        key=key,
        image=members[images[0]],
        ext=images[0],
        segments_map=_decode_flat(key, members, SEGMENTS, shape),
        layers=_decode_map(key, members, INSTANCES, shape),
        semantic=_decode_flat(key, members, SEMANTIC, shape),
        **values,
    )


def check_round_trip(sample: Sample, members: Members) -> None:
    """Check that encoding a decoded sample and decoding it again loses nothing.

    Args:
        sample: What `decode` returned.
        members: What it was decoded from.

    Raises:
        DataError: The JSON or a map differs after encoding and decoding.
    """
    encoded = encode(sample)
    lost = [] if json.loads(encoded["json"]) == json.loads(bytes(members["json"])) else ["json"]
    again = decode(sample.key, encoded)
    for name in ("segments_map", "layers", "semantic"):
        if not np.array_equal(getattr(sample, name), getattr(again, name)):
            lost.append(name)
    if lost:
        raise DataError(
            f"{', '.join(lost)} does not survive encoding and decoding",
            where=sample.key,
            fix=_REBUILD,
        )


def decode_json(key: str, document: bytes | memoryview) -> Sample:
    """Return a sample from its JSON member alone, without its image and its maps.

    Raises:
        DataError: The JSON is damaged or of another schema.
    """
    return Sample(key=key, image=b"", ext="", **_values(key, document))


@dataclass(frozen=True, slots=True)
class _Document:
    """The JSON member of a sample."""

    schema: int
    image_id: str
    file_name: str
    source: str
    width: int
    height: int
    licence: str = ""
    attribution: str = ""
    segments: list[Segment] | None = None
    instances: list[Instance] | None = None


def _values(key: str, document: bytes | memoryview) -> dict[str, Any]:
    """Return the fields of a Sample that its JSON member holds."""
    try:
        values = parse_json(bytes(document))
        schema = values.get("schema") if isinstance(values, dict) else None
        found = checked(_Document, values) if schema == SCHEMA else None
        if found and not 0 < found.width * found.height <= MAX_PIXELS:
            raise ValueError(f"the size is {found.width}x{found.height}")
    except ValueError as error:
        raise DataError(f"the json member is damaged ({error})", where=key, fix=_REBUILD) from error
    if found is None:
        raise DataError(
            f"the sample has schema {schema!r:.40}, but this version reads {SCHEMA}",
            where=key,
            fix="rebuild the set",
        )
    rights = {name: value for name in RIGHTS if (value := getattr(found, name))}
    plain = {name: getattr(found, name) for name in (*_PLAIN, "segments", "instances")}
    return plain | {"rights": rights}


def _document(sample: Sample) -> dict[str, Any]:
    """Return the contents of the JSON member."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        **{name: getattr(sample, name) for name in _PLAIN},
        **{name: sample.rights.get(name, "") for name in RIGHTS},
    }
    for name in ("segments", "instances"):
        if (entries := getattr(sample, name)) is not None:
            document[name] = [_plain(entry) for entry in entries]
    return document


def _plain(entry: Segment) -> dict[str, Any]:
    """Return an entry as JSON values; `dataclasses.asdict` would copy each of them.

    Areas and boxes become floats, so that `1` and `1.0` of a publisher give equal bytes.
    """
    plain = {field.name: getattr(entry, field.name) for field in fields(entry)}
    return plain | {"area": float(entry.area), "bbox": list(map(float, entry.bbox))}


def _encode_map(values: np.ndarray) -> bytes:
    assert values.dtype in (np.uint8, np.uint16), values.dtype
    check_fits(values.shape[1], len(values))  # otherwise OpenCV would return no bytes
    return cv2.imencode(".png", values, _PNG)[1].tobytes()


def _decode_map(key: str, members: Members, ext: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Return a map member as layers `[L, H, W]`, or None if the sample has no such member."""
    if ext not in members:
        return None
    values = decode_map(members[ext], f"{key}.{ext}")
    height, width = shape
    if values.ndim != 2 or values.shape[1] != width or len(values) % height:
        raise DataError(
            f"the map is not {width}x{height} pixels", where=f"{key}.{ext}", fix=_REBUILD
        )
    return values.reshape(-1, height, width)


def _decode_flat(key: str, members: Members, ext: str, shape: tuple[int, int]) -> np.ndarray | None:
    """Return a map member of one layer as `[H, W]`, or None if the sample has no such member."""
    layers = _decode_map(key, members, ext, shape)
    if layers is None:
        return None
    if len(layers) != 1:
        raise DataError(
            f"the map has {len(layers)} layers, not one", where=f"{key}.{ext}", fix=_REBUILD
        )
    return layers[0]


def decode_map(png: bytes | memoryview, name: str) -> np.ndarray:
    """Return the values of a PNG of integers, which `name` names in errors.

    Raises:
        DataError: The PNG declares more than MAX_PIXELS pixels, is not a map of 8 or 16 bits, or
            does not decode.
    """
    declared = png_size(png)
    if declared is None or not fits(*declared):
        raise DataError(
            f"not a PNG of at most {MAX_PIXELS} pixels and {MAX_ROWS} rows",
            where=name,
            fix=_REBUILD,
        )
    values = decode_with_opencv(png, cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise DataError("the map does not decode", where=name, fix=_REBUILD)
    return values
