"""YOLO's outlines: a text file per image, with a class and a polygon in each line.

    data.yaml                      names: a list, or a mapping from numbers; or
    classes.txt                    a name in each line
    images/train/a.jpg             labels/train/a.txt; or train/images/a.jpg and train/labels/a.txt;
                                   or both in one folder

A line is `CLASS x y x y ...`; coordinates are shares of the image's width and height. An image
whose text file is empty has no object, and an image without a text file is left out. All classes
are things. An image belongs to the split that one of its folders names (train, val or valid, test),
and otherwise to `train`.
"""

import reprlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from shards.checked import PlainLoader
from shards.doctor import Doctor, Reject
from shards.errors import DataError, some_of
from shards.files import read_regular
from shards.format.schema import is_printable
from shards.format.taxonomy import Category, Taxonomy, palette
from shards.raw.values import integer, number
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

NAMES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_BEYOND = 1.5  # a coordinate above this is not a share that was rounded


def splits(root: Path, report: Callable[[str], None]) -> list[str]:
    """Return the splits that have a label file beside an image.

    Raises:
        UsageError: There are none.
    """
    return splits_of((name for name, _, _ in pairs(root, report)), root, "yolo")


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """List a split; its items read the images later.

    Raises:
        DataError: The names of the classes are missing or malformed.
    """
    taxonomy = load_names(root)
    items = [
        OutlineItem(
            source="yolo",
            file_name=name,
            image=image,
            truth=truth,
            classes=taxonomy.names,
            declared_size=_declared_size,
            read_shapes=partial(_read_shapes, len(taxonomy)),
        )
        for name, image, truth in pairs(root, report)
        if split_of(name) == split
    ]
    return outline_split(split, taxonomy, items, root)


def pairs(root: Path, report: Callable[[str], None]) -> list[tuple[str, Path, Path]]:
    """Return (name, path, label file) of the images that have a label file."""
    found, without = [], []
    for name, image in files_of(root, report):
        truth = next((path for path in _label_files(root, name) if path.is_file()), None)
        if truth is None:
            without.append(name)
        else:
            found.append((name, image, truth))
    if found and without:
        report(f"{len(without)} images have no label file and are left out: {some_of(without, 3)}")
    return found


def _label_files(root: Path, name: str) -> Iterator[Path]:
    """Yield where the label file of an image may be: in `labels` instead of `images`, or beside."""
    parts = list(PurePosixPath(name).with_suffix(".txt").parts)
    for n in reversed(range(len(parts) - 1)):
        if parts[n].lower() == "images":
            yield root.joinpath(*parts[:n], "labels", *parts[n + 1 :])
    yield root.joinpath(*parts)


def names_file(root: Path) -> Path | None:
    """Return the file with the names of the classes, None if there is none."""
    return next((root / name for name in NAMES if (root / name).is_file()), None)


def load_names(root: Path) -> Taxonomy:
    """Return the classes of a data set.

    Raises:
        DataError: Their file is missing or malformed.
    """
    path = names_file(root)
    if path is None:
        raise DataError(
            "the names of the classes are missing",
            where=root,
            fix="add data.yaml with `names: [cat, dog]`, or classes.txt with a name in each line",
        )
    try:
        names = _names_in(path)
    except DataError:
        raise
    except Exception as error:  # PyYAML raises almost any class for a damaged file
        what = f"the names of the classes cannot be read ({' '.join(str(error).split())})"
        raise DataError(what, where=path, fix="write `names: [cat, dog]`") from error
    odd = [name for name in names.values() if not name.strip() or not is_printable(name)]
    if odd or len(set(names.values())) < len(names):
        what = f"the name {reprlib.repr(odd[0])} is empty or odd" if odd else "a name occurs twice"
        raise DataError(what, where=path, fix="correct the names of the classes")
    if sorted(names) != list(range(len(names))):
        what = f"the classes are numbered {some_of(list(map(str, sorted(names))), 5)}"
        raise DataError(what, where=path, fix="number them 0, 1, 2, ... without a gap")
    try:
        return Taxonomy.of(
            "yolo", [Category(n, name, True, palette(n)) for n, name in names.items()]
        )
    except DataError as error:
        raise error.at(path) from error


def _names_in(path: Path) -> dict[int, str]:
    """Return the names by number.

    Raises:
        ValueError: The file has another form.
    """
    content = read_regular(path).decode("utf-8-sig")
    if path.suffix in (".txt", ".names"):
        return dict(enumerate(line.strip() for line in content.splitlines() if line.strip()))
    value: Any = yaml.load(content, Loader=PlainLoader)
    names = value.get("names") if isinstance(value, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise ValueError("it has no list or mapping `names`")
    numbers = {integer("the number of a class", n): str(name) for n, name in names.items()}
    if any(isinstance(name, dict | list | bool) or name is None for name in names.values()):
        raise ValueError("a name is not a text")
    return numbers


def _declared_size(path: Path) -> None:
    """Return None: the files do not give the size of the image."""


def rows(path: Path) -> list[list[str]]:
    """Return the words of each line of a label file that is not empty.

    Raises:
        ValueError: It is not text.
    """
    lines = read_regular(path).decode("utf-8-sig").splitlines()
    return [words for line in lines if (words := line.split())]


def _read_shapes(classes: int, path: Path, size: Size, doctor: Doctor) -> list[Shape]:
    """Return the objects of a file.

    Args:
        classes: The number of classes.
        path: The file.
        size: The image's width and height.
        doctor: Receives the findings that keep the sample in the set.

    Raises:
        Reject: A class is unknown.
        ValueError: A line is malformed.
    """
    shapes = []
    for n, (first, *words) in enumerate(rows(path), 1):
        category = integer("the class", first)
        if not 0 <= category < classes:
            raise Reject(13, f"line {n} of {path.name} has class {category} of {classes}")
        if len(words) == 4:
            raise ValueError(f"line {n} is a box, and training needs outlines")
        shares = [number("a coordinate", word) for word in words]
        if len(shares) < 6 or len(shares) % 2:
            raise ValueError(f"line {n} has {len(shares)} coordinates, which are not a polygon")
        if max(map(abs, shares)) > _BEYOND:
            raise ValueError(
                f"line {n} has the coordinate {max(shares):g}, not a share of the image"
            )
        pixels = [share * size[i % 2] for i, share in enumerate(shares)]
        shapes.append(Shape(category, [pixels]))
    return shapes
