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
from functools import partial
from pathlib import Path
from typing import Any

from shards.doctor import Doctor
from shards.errors import UsageError
from shards.sources.classes import CLASSES, load_classes
from shards.sources.label_maps import labels_of, read_labels, truth_of_maps
from shards.sources.layout import Layout, MapItem
from shards.sources.split import Split


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
    taxonomy, ignored, licence = load_classes(root / CLASSES)
    truth = partial(_truth, labels_of(taxonomy, ignored), sum(taxonomy.things), tasks)
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


def _truth(
    labels: dict[int, int],
    things: int,
    tasks: Collection[str],
    item: MapItem,
    size: tuple[int, int],
    _: Doctor,
) -> dict[str, Any]:
    """The Record's fields of truth; `labels` gives c + 1 for class c, 0 for none."""
    maps = {kind: (path.name, read_labels(path, size)) for kind, path in item.raw.maps.items()}
    fields = truth_of_maps(labels, things, maps["labels"], maps.get("instances"))
    if "semantic" not in tasks:
        del fields["semantic"]
    return fields
