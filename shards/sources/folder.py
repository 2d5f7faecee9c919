"""A plain layout for data of one's own: images, label maps, a list of classes.

    classes.yaml
    images/SPLIT/*.{jpg,png,…}
    labels/SPLIT/*.png         semantic: the id of a class, 8 or 16 bit
    instances/SPLIT/*.png      n for the pixels of the image's n-th thing, 0 = none; may be absent

A map has its image's name, folders below SPLIT included. Panoptic truth is composed: the stuff of
the labels, and the things of the instances; a thing's pixels in no instance are void. The id of a
thing's segment is n, that of a stuff segment 65536 + the id of its class. docs/folder.md
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from shards.doctor import Doctor, Reject
from shards.errors import DataError, UsageError
from shards.sources.label_maps import classes_of, read_labels, segments_of
from shards.sources.layout import Layout, MapItem
from shards.sources.split import Split
from shards.taxonomy import Category, Taxonomy, palette

CLASSES = "classes.yaml"
_STUFF = 1 << 16  # before the label in a stuff segment's id


def splits(root: Path, report: Callable[[str], None]) -> list[str]:
    """The folders in images/. Raises UsageError if there is none."""
    return _layout(root).found(root, report)


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """List a split; its pictures wait for `load` of its items.

    With `tasks` None those are served for which every image has its truth, and `report` hears of
    the others. Raises UsageError for a split that is not there, DataError for truth that is not.
    """
    layout = _layout(root)
    tasks, files = layout.gather(root, split, tasks, report)
    taxonomy, ignored, licence = _described(root / CLASSES)
    labels = dict.fromkeys(ignored, 0)
    labels |= {c.id: n for n, c in enumerate(taxonomy.categories, start=1)}
    truth = partial(_truth, labels, sum(taxonomy.things), tasks)
    return layout.split(
        split, tasks, taxonomy, files, truth, licence=licence, said=lambda name: ignored
    )


def _layout(root: Path) -> Layout:
    folders = sorted(path.name for path in (root / "images").glob("*/"))
    if not folders:
        raise UsageError(f"{root / 'images'} holds no folder of a split; see docs/folder.md")
    return Layout(
        source="folder",
        splits={name: name for name in folders},
        images=("images/{}", (".jpg", ".jpeg", ".png", ".webp", ".bmp")),
        maps={kind: (f"{kind}/{{}}", ".png") for kind in ("labels", "instances")},
        needs={
            "panoptic": ("labels", "instances"),
            "instance": ("labels", "instances"),
            "semantic": ("labels",),
        },
    )


@dataclass
class _Class:
    id: int = MISSING
    name: str = MISSING
    isthing: bool = False
    color: list[int] | None = None


@dataclass
class _Description:
    """What `classes.yaml` holds."""

    name: str = "folder"
    classes: list[Any] = MISSING
    ignored: list[int] = field(default_factory=list)
    licence: dict[str, str] = field(default_factory=dict)


def _described(path: Path) -> tuple[Taxonomy, list[int], dict[str, str]]:
    """The classes, the labels of none and the licence. Raises DataError naming what is wrong."""
    try:
        text = path.read_text()
        document = yaml.safe_load(text)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; list the classes there, see docs/folder.md") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML ({error}); correct it") from error
    if "${" in text:  # OmegaConf would put the environment in its place
        raise DataError(f"{path} has '${{' in it; take it out")
    description = _typed(path, _Description, document)
    categories = []
    for place, row in enumerate(description.classes):
        one = _typed(f"{path}: classes[{place}]", _Class, row)
        color = tuple(palette(place) if one.color is None else one.color)
        if len(color) != 3 or not all(0 <= part <= 255 for part in color):
            raise DataError(f"{path}: color {one.color} of {one.name} is not three of 0 to 255")
        categories.append(Category(one.id, one.name, one.isthing, color))
    try:
        taxonomy = Taxonomy.of(description.name, categories)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if both := {category.id for category in categories} & set(description.ignored):
        raise DataError(f"{path}: {both.pop()} is a class and ignored; take it out of one list")
    return taxonomy, description.ignored, description.licence


def _typed(where: Path | str, kind: type, value: Any) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), value))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: {str(error).splitlines()[0]}; correct it, see docs/folder.md"
        ) from error


def _truth(
    labels: dict[int, int],
    things: int,
    tasks: Collection[str],
    item: MapItem,
    size: tuple[int, int],
    _: Doctor,
) -> dict[str, Any]:
    """The Record's fields of truth; `labels` gives c + 1 for class c, 0 for none."""
    path, fields = item.raw.maps["labels"], {}
    values = read_labels(path, size)
    classes = classes_of(values, labels, path.name)
    if "semantic" in tasks:
        fields["semantic"] = classes
    if "instances" in item.raw.maps:
        path = item.raw.maps["instances"]
        numbers = read_labels(path, size)
        of = _classes_of_instances(numbers, classes, things, path.name)
        stuff = np.where(classes > things, values + np.uint32(_STUFF), np.uint32(0))
        fields["segments"], fields["segments_map"] = segments_of(
            np.where(numbers > 0, numbers, stuff),
            lambda id: ((of[id] if id < _STUFF else labels[id - _STUFF]) - 1, 0),
        )
    return fields


def _classes_of_instances(
    numbers: np.ndarray, classes: np.ndarray, things: int, name: str
) -> list[int]:
    """c + 1 by instance for its class c, from the map of classes `[H, W]` below it.

    Rejects an instance, of the file `name`, that is not on one thing class.
    """
    of = np.zeros(int(numbers.max()) + 1, classes.dtype)
    of[numbers] = classes
    of[0] = 0
    for wrong, why in (
        ((numbers > 0) & (of[numbers] != classes), "is on several classes"),
        ((numbers > 0) & ((classes < 1) | (classes > things)), "is on a class that is no thing"),
    ):
        if wrong.any():
            raise Reject(13, f"instance {numbers[wrong][0]} of {name} {why}")
    return of.tolist()
