"""A plain layout for any data set: images, label maps, and a list of classes.

    classes.yaml
    images/SPLIT/*.{jpg,png,…}
    labels/SPLIT/*.png         semantic: the id of a class, 8 or 16 bit
    instances/SPLIT/*.png      n for the pixels of the image's n-th thing, 0 = none; optional

A map has the name of its image, including folders below SPLIT. Panoptic maps are composed of the
stuff classes of the labels and the things of the instances. A thing's pixels outside every instance
are void. The id of a thing's segment is n, and the id of a stuff segment is 65536 + the id of its
class. docs/folder.md describes the layout for users.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from shards.doctor import Doctor
from shards.errors import UsageError, some_of
from shards.files import files_below, is_clutter
from shards.format.label_maps import labels_of, read_labels, truth_of_maps
from shards.format.schema import IMAGES, JPEG
from shards.sources.classes import CLASSES, load_classes
from shards.sources.layout import Layout
from shards.sources.map_item import Description, MapItem, read_split
from shards.sources.split import Split


def splits(root: Path, report: Callable[[str], None]) -> list[str]:
    """Return the names of the folders in images/ that hold a file.

    Raises:
        UsageError: There are none.
    """
    found = []
    for split in _layout(root).splits:
        if any(True for _ in files_below(root / "images" / split, report)):
            found.append(split)
        else:
            report(f"{split}: {root / 'images' / split} is empty, so this split is not built")
    loose = [path.name for path in (root / "images").iterdir() if path.is_file()]
    loose = sorted(name for name in loose if not is_clutter(Path(name)))
    if loose:
        report(f"{root / 'images'} has files outside the folders of the splits: {some_of(loose)}")
    if not found:
        raise _no_split(root)
    return found


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """List a split as `read_split` does."""
    return read_split(_layout(root), _describe, root, split, tasks, report)


def _layout(root: Path) -> Layout:
    paths = (path for path in (root / "images").glob("*/") if path.is_dir())
    folders = sorted(path.name for path in paths if not is_clutter(Path(path.name)))
    if not folders:
        raise _no_split(root)
    return Layout(
        source="folder",
        splits={name: name for name in folders},
        images=("images/{}", tuple(f".{ext}" for ext in dict.fromkeys((*JPEG, *IMAGES)))),
        maps={kind: (f"{kind}/{{}}", ".png") for kind in ("labels", "instances")},
        needs={
            "panoptic": ("labels", "instances"),
            "instance": ("labels", "instances"),
            "semantic": ("labels",),
        },
    )


def _no_split(root: Path) -> UsageError:
    return UsageError(
        "the folder has no subfolder with the images of a split; "
        f"{root} holds {some_of(sorted(path.name for path in root.iterdir())) or 'nothing'}",
        where=root / "images",
        fix="see docs/folder.md",
    )


def _describe(root: Path, split: str, tasks: tuple[str, ...]) -> Description:
    taxonomy, ignored, licence = load_classes(root / CLASSES)
    labels = labels_of(taxonomy, ignored)
    return Description(
        taxonomy=taxonomy,
        license=licence,
        read_truth=partial(_read_truth, labels, taxonomy.things, "semantic" in tasks),
        depends=lambda name: ignored,
    )


def _read_truth(
    labels: dict[int, int],
    things: tuple[bool, ...],
    semantic: bool,
    item: MapItem,
    size: tuple[int, int],
    _: Doctor,
) -> dict[str, Any]:
    """Read the annotations of an item and return them as the fields of a sample.

    Args:
        labels: By label, c + 1 for class c and 0 for an ignored label.
        things: For each class, whether it is a thing.
        semantic: Whether to return the semantic map too.
        item: The item.
        size: The image's width and height.
    """
    maps = {kind: (path.name, read_labels(path, size)) for kind, path in item.raw.maps.items()}
    fields = truth_of_maps(labels, things, maps["labels"], maps.get("instances"))
    if not semantic:
        del fields["semantic"]
    return fields
