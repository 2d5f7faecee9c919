"""Annotations in COCO's formats: the fields that every segment and instance has."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.doctor import Reject
from shards.errors import DataError
from shards.format.taxonomy import Taxonomy


def entry_fields(entry: dict[str, Any], taxonomy: Taxonomy) -> dict[str, Any]:
    """Return the fields of a Segment from an entry of `segments_info` or of instance annotations.

    Raises:
        Reject: The category is unknown.
        KeyError, TypeError, ValueError: The entry is malformed; see `reject_malformed`.
    """
    try:
        category = taxonomy.index(entry["category_id"])
    except DataError as error:
        raise Reject(13, f"category id {entry['category_id']} is not in the list") from error
    x, y, width, height = map(float, entry["bbox"])
    return {
        "id": entry["id"],
        "category": category,
        "iscrowd": entry.get("iscrowd", 0),
        "area": float(entry["area"]),
        "bbox": [x, y, width, height],
    }


@contextlib.contextmanager
def reject_malformed(path: Path, byte: int) -> Iterator[None]:
    """Reject the sample if its annotation, at a byte of a file, is malformed.

    Raises:
        Reject: The block failed because a member is missing or has the wrong type.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise Reject(22, f"{path.name} at byte {byte}: {error!r}") from error
