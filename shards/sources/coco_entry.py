"""Annotations in COCO's formats: the fields that every segment and instance has."""

import contextlib
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from shards.doctor import Doctor, Reject
from shards.errors import DataError
from shards.files import leaves_folder
from shards.format.schema import Segment, key_of
from shards.format.taxonomy import Taxonomy
from shards.raw.json_entries import read_ranges
from shards.raw.masks import check_area, number_segments
from shards.raw.values import box, flag, identifier, integer, member, number


def entry_fields(entry: Any, taxonomy: Taxonomy) -> dict[str, Any]:
    """Return the fields of a Segment from an entry of `segments_info` or of instance annotations.

    `area` and `bbox` are None if the entry does not give them.

    Raises:
        Reject: The category is unknown.
        ValueError: The entry is malformed; see `reject_malformed`.
    """
    id = identifier("id", member(entry, "id"))
    category_id = integer("category_id", member(entry, "category_id"))
    try:
        category = taxonomy.index(category_id)
    except DataError as error:
        raise Reject(13, f"category id {category_id} is not in the list") from error
    area, bbox = entry.get("area"), entry.get("bbox")
    return {
        "id": id,
        "category": category,
        "iscrowd": int(is_crowd(entry)),
        "area": None if area is None else number("area", area),
        "bbox": None if bbox is None else box("bbox", bbox),
    }


def is_crowd(entry: dict[str, Any]) -> bool:
    """Return the flag `iscrowd` of an entry; without it, the entry is not a crowd."""
    value = entry.get("iscrowd")
    return value is not None and flag("iscrowd", value)


def relative_name(name: Any, kind: str) -> str:
    """Return the name of a file below the folder of its kind, image or map.

    Raises:
        ValueError: The name has another form.
        DataError: A shard cannot hold the name.
    """
    try:
        key_of(name)
    except DataError:
        if isinstance(name, str) and PurePosixPath(name).name and not leaves_folder(name):
            raise
        raise ValueError(
            f"file_name {reprlib.repr(name)} is not a path relative to the {kind} folder, "
            "with / between the parts and without .."
        ) from None
    return name


@contextlib.contextmanager
def reject_malformed(path: Path, byte: int, name: str) -> Iterator[None]:
    """Reject the sample if its annotation is malformed.

    Args:
        path: The file.
        byte: The byte of the annotation.
        name: The name of the entry in the finding.

    Raises:
        Reject: The block raised a ValueError, because a member is missing or has a wrong value.
    """
    try:
        yield
    except Reject:
        raise
    except DataError as error:
        raise Reject(23, error.problem.what) from error
    except ValueError as error:
        raise Reject(22, f"{path.name} at byte {byte}: {name}: {error}") from error


def read_segments(
    path: Path, ranges: Sequence[int], ids: np.ndarray, taxonomy: Taxonomy, doctor: Doctor
) -> tuple[list[Segment], np.ndarray]:
    """Read the panoptic segments of an image, and number its map.

    Args:
        path: The file of the panoptic annotations.
        ranges: The byte ranges (start, end, ...) of the image's annotations in it.
        ids: The ids in the image's panoptic PNG, `uint32 [H, W]`.
        taxonomy: The classes.
        doctor: Receives the findings that keep the sample in the set.

    Returns:
        The segments, and the map of their positions, `uint8` or `uint16 [H, W]`.

    Raises:
        Reject: The annotation is malformed, or differs from the PNG.
    """
    found: list[dict[str, Any]] = []
    for annotation, byte in zip(read_ranges(path, ranges), ranges[::2], strict=True):
        with reject_malformed(path, byte, "segments_info"):
            entries = member(annotation, "segments_info")
            if not isinstance(entries, list):
                raise ValueError("it is not a list")
        for n, entry in enumerate(entries):
            with reject_malformed(path, byte, f"segments_info[{n}]"):
                found.append(entry_fields(entry, taxonomy))
    numbered, areas = number_segments(ids, [fields["id"] for fields in found])
    for n, (fields, pixels) in enumerate(zip(found, areas, strict=True), 1):
        if fields["area"] is None:
            fields["area"] = float(pixels)
        if fields["bbox"] is None:
            fields["bbox"] = [*map(float, cv2.boundingRect((numbered == n).astype(np.uint8)))]
        check_area(f"segment {fields['id']}", fields["area"], pixels, doctor)
    return [Segment(**fields) for fields in found], numbered
