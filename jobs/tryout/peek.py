"""Look into a JSON file of labels only as far as it takes to tell its kind."""

from pathlib import Path
from typing import Any, NamedTuple

from shards.errors import DataError
from shards.raw.json_entries import Entry, iterate_entries

_LISTS = ("images", "annotations")


class Peek(NamedTuple):
    """What a JSON file is.

    Attributes:
        path: The file.
        kind: `instances`, `panoptic`, `labelme`, or `other`.
        image: The name of its first image.
        map_name: The name of its first map.
        error: Why annotations in COCO's format cannot be trained on, or a damaged file be read.
    """

    path: Path
    kind: str
    image: str = ""
    map_name: str = ""
    error: DataError | None = None


def peek(path: Path) -> Peek:
    """Return what a JSON file is."""
    image, first, is_empty = "", None, True
    try:
        for entry in iterate_entries(path, _LISTS):
            if entry.name == "shapes" and isinstance(entry.value, list):
                return Peek(path, "labelme")
            if entry.name == "images" and not image:
                image = _name(entry, "file_name")
            if entry.name == "annotations" and first is None:
                is_empty, first = False, entry if _kind(entry) else None
            if image and first:
                break
    except DataError as error:
        is_other = "the file ends without" in error.problem.what
        return Peek(path, "other", error=None if is_other else error)
    except OSError as error:
        return Peek(path, "other", error=DataError(f"unreadable ({error.strerror})", where=path))
    if first is None:
        what, fix = "has boxes and no outlines", "export outlines (COCO segmentation)"
        if is_empty:
            what, fix = "has no annotation", "draw the outlines of objects, and export them again"
        return Peek(path, "other", error=DataError(f"the file {what}", where=path, fix=fix))
    return Peek(path, _kind(first), image, _name(first, "file_name"))


def _kind(annotation: Entry) -> str:
    """Return the kind of an annotation in COCO's formats, "" if it has no outline."""
    value: Any = annotation.value
    if not isinstance(value, dict):
        return ""
    return "panoptic" if "segments_info" in value else "instances" * bool(value.get("segmentation"))


def _name(entry: Entry, member: str) -> str:
    value: Any = entry.value
    name = value.get(member) if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""
