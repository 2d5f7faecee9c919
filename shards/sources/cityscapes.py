"""Cityscapes' raw layout: leftImg8bit and, of gtFine, the maps of labels and of instances.

    leftImg8bit/{train,val}/CITY/*_leftImg8bit.png
    gtFine/{train,val}/CITY/*_gtFine_labelIds.png      0 to 33 = label, 19 of them classes
    gtFine/{train,val}/CITY/*_gtFine_instanceIds.png   label, or 1000 label + n for an instance

The first maps are the semantic truth; the second give the segments, with their values as ids: what
has a thing's bare label is a group, so a crowd, and what is of none of the 19 classes is void.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.doctor import Doctor
from shards.format.taxonomy import Category, Taxonomy
from shards.sources.label_maps import classes_of, labels_of, read_labels, segments_of
from shards.sources.layout import Layout, MapItem, table
from shards.sources.split import Split

_LICENCE = {
    "name": "Cityscapes: non-commercial research",
    "url": "https://www.cityscapes-dataset.com/license/",
}
_SEMANTIC, _INSTANCE = "labelIds", "instanceIds"
_LAYOUT = Layout(
    source="cityscapes",
    splits={"train": "train", "val": "val"},
    images=("leftImg8bit/{}", ("_leftImg8bit.png",)),
    maps={kind: ("gtFine/{}", f"_gtFine_{kind}.png") for kind in (_SEMANTIC, _INSTANCE)},
    needs={"panoptic": (_INSTANCE,), "instance": (_INSTANCE,), "semantic": (_SEMANTIC,)},
)

splits = _LAYOUT.found


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """List a split; its pictures wait for `load` of its items.

    With `tasks` None those are served for which every image has its truth, and `report` hears of
    the others. Raises UsageError for a split that is not there, DataError for truth that is not.
    """
    tasks, files = _LAYOUT.gather(root, split, tasks, report)
    rows = table("cityscapes")
    taxonomy = Taxonomy.of(
        "cityscapes",
        [
            Category(row["id"], row["name"], row["isthing"], tuple(row["color"]))
            for row in rows
            if row["train_id"] != 255 and (row["isthing"] or tasks != ("instance",))
        ],
    )
    labels = labels_of(taxonomy, [row["id"] for row in rows])
    return _LAYOUT.split(
        split,
        tasks,
        taxonomy,
        files,
        partial(_truth, labels, sum(taxonomy.things), tasks),
        licence=_LICENCE,
        image_id=lambda name: PurePosixPath(name).name,
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
    maps = item.raw.maps
    fields: dict[str, Any] = {}
    if _SEMANTIC in maps:
        path = maps[_SEMANTIC]
        fields["semantic"] = classes_of(read_labels(path, size), labels, path.name)
    if _INSTANCE in maps:
        path = maps[_INSTANCE]
        values = read_labels(path, size)
        bare = np.where(values < 1000, values, values // 1000)
        classes = classes_of(bare, labels, path.name)

        def entry(id: int) -> tuple[int, int]:
            category = labels[id if id < 1000 else id // 1000] - 1
            return category, int(id < 1000 and category < things)

        ids = np.where(classes > 0, values, np.uint16(0))
        fields["segments"], fields["segments_map"] = segments_of(ids, entry)
    return fields
