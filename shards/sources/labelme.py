"""LabelMe's files: a JSON beside each image, with the outlines of its objects.

    a.jpg a.json           in any folders below the root

A JSON has `shapes`, and names its image by `imagePath`, relative to itself; if that file is
missing, the image is the one beside the JSON with the same stem. Polygons, rectangles, and circles
are objects; shapes of one label and one `group_id` are the parts of one object. Points and lines
have no area and are left out. The classes are the labels of all files in alphabetical order, and
all of them are things. A file belongs to the split that one of its folders names (train, val or
valid, test), and otherwise to `train`.
"""

import math
import reprlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shards.doctor import Doctor
from shards.errors import DataError
from shards.files import read_json
from shards.format.schema import IMAGES, JPEG, is_printable
from shards.format.taxonomy import Category, Taxonomy, palette
from shards.raw.values import integer, member, number, text
from shards.sources.outlines import (
    OutlineItem,
    Shape,
    Size,
    files_of,
    outline_split,
    split_of,
    splits_of,
)
from shards.sources.split import Split

_CORNERS = 64  # of the polygon that stands for a circle
_WITHOUT_AREA = ("point", "points", "line", "linestrip")


def is_labelme(value: Any) -> bool:
    """Return whether parsed JSON is a file of LabelMe."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list)


class _Document(NamedTuple):
    """A file of LabelMe without its shapes.

    Attributes:
        name: Its name relative to the root.
        path: The file.
        image: What it names as its image.
        labels: The labels of its shapes.
    """

    name: str
    path: Path
    image: Any = None
    labels: frozenset[str] = frozenset()


def splits(root: Path, report: Callable[[str], None]) -> list[str]:
    """Return the splits that have a file of LabelMe.

    Raises:
        UsageError: There are none.
    """
    return splits_of((document.name for document in _documents(root, report)), root, "labelme")


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """List a split; its items read the images later.

    Raises:
        DataError: No file has a label, or a label is not a name.
    """
    documents = _documents(root, report)
    taxonomy = _taxonomy(root, documents)
    items = [
        OutlineItem(
            source="labelme",
            file_name=image.relative_to(root).as_posix(),
            image=image,
            truth=document.path,
            classes=taxonomy.names,
            declared_size=_declared_size,
            read_shapes=partial(_read_shapes, taxonomy.names),
        )
        for document in documents
        if split_of(document.name) == split
        for image in [_image_of(document, root)]
    ]
    return outline_split(split, taxonomy, items, root)


def _documents(root: Path, report: Callable[[str], None]) -> list[_Document]:
    """Return the files of LabelMe, and damaged JSON beside them, which reading rejects."""
    found, damaged = [], []
    for name, path in files_of(root, report, ".json"):
        try:
            value = read_json(path)
        except (OSError, ValueError):
            damaged.append(_Document(name, path))
            continue
        if not is_labelme(value):
            report(f"{path} is not a file of LabelMe and is skipped")
            continue
        shapes = [shape for shape in value["shapes"] if isinstance(shape, dict)]
        labels = [shape.get("label") for shape in shapes]
        texts = frozenset(label for label in labels if isinstance(label, str))
        found.append(_Document(name, path, value.get("imagePath"), texts))
    return found + damaged if found else []


def _taxonomy(root: Path, documents: list[_Document]) -> Taxonomy:
    labels = sorted({label for document in documents for label in document.labels})
    if odd := [label for label in labels if not label.strip() or not is_printable(label)]:
        what = f"the label {reprlib.repr(odd[0])} is empty or has control characters"
        raise DataError(what, where=root, fix="correct it")
    if not labels:
        raise DataError("no file has a label", where=root, fix="draw objects in LabelMe first")
    categories = [Category(n, name, True, palette(n - 1)) for n, name in enumerate(labels, 1)]
    return Taxonomy.of("labelme", categories)


def _image_of(document: _Document, root: Path) -> Path:
    """Return the image of a file: what it names, or the one with its stem; it may be missing."""
    path, named = document.path, document.image
    if isinstance(named, str) and named and is_printable(named):
        image = (path.parent / named.replace("\\", "/")).resolve()
        if image.is_relative_to(root.resolve()) and image.is_file():
            return root / image.relative_to(root.resolve())
    beside = (path.with_suffix(f".{ext}") for ext in dict.fromkeys((*JPEG, *IMAGES)))
    return next((image for image in beside if image.is_file()), path.with_suffix(".jpg"))


def _declared_size(path: Path) -> Size | None:
    """Return the width and height that a file gives for its image, if it does.

    Raises:
        ValueError: They are not whole numbers.
    """
    value = read_json(path)
    member(value, "shapes")
    width, height = value.get("imageWidth"), value.get("imageHeight")
    if width is None or height is None:
        return None
    return integer("imageWidth", width), integer("imageHeight", height)


def _read_shapes(names: tuple[str, ...], path: Path, size: Size, doctor: Doctor) -> list[Shape]:
    """Return the objects of a file.

    Args:
        names: The names of the classes.
        path: The file.
        size: The image's width and height.
        doctor: Receives the findings that keep the sample in the set.

    Raises:
        ValueError: A shape is malformed.
    """
    objects: dict[Any, Shape] = {}
    for n, shape in enumerate(member(read_json(path), "shapes")):
        label = text("label", member(shape, "label"))
        if label not in names:
            raise ValueError(f"label {reprlib.repr(label)} is new; build again")
        kind, group = shape.get("shape_type") or "polygon", shape.get("group_id")
        if kind in _WITHOUT_AREA:
            doctor.note(19, f"shape {n + 1} ({label}) is a {kind}, which has no area")
            continue
        points = _outline(kind, member(shape, "points"))
        which = ("alone", n) if group is None else (label, integer("group_id", group))
        objects.setdefault(which, Shape(names.index(label), [])).parts.append(points)
    return list(objects.values())


def _outline(kind: str, points: Any) -> list[float]:
    """Return the polygon of a shape as coordinates x, y, x, y, ...

    Raises:
        ValueError: The points are malformed, or the kind of shape is unknown.
    """
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"points {reprlib.repr(points)} are not a list of points [x, y]")
    outline = [(number("x", x), number("y", y)) for x, y in points]
    if kind in ("rectangle", "circle"):
        if len(outline) != 2:
            raise ValueError(f"a {kind} has {len(outline)} points instead of 2")
        (x, y), (right, bottom) = outline
        if kind == "rectangle":
            outline = [(x, y), (right, y), (right, bottom), (x, bottom)]
        else:
            radius = math.dist(*outline)
            turns = (2 * math.pi * n / _CORNERS for n in range(_CORNERS))
            outline = [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns]
    elif kind != "polygon":
        raise ValueError(
            f"shape_type {reprlib.repr(kind)} is neither polygon, rectangle, nor circle"
        )
    return [coordinate for point in outline for coordinate in point]
