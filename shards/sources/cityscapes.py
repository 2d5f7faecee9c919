"""Cityscapes' layout: the images of leftImg8bit, and the label and instance maps of gtFine.

    leftImg8bit/{train,val}/CITY/*_leftImg8bit.png
    gtFine/{train,val}/CITY/*_gtFine_labelIds.png      0 to 33 = label, 19 of them classes
    gtFine/{train,val}/CITY/*_gtFine_instanceIds.png   label, or 1000 label + n for an instance

The 19 classes are in the order of their train ids, which is that of their labels. The labelIds are
the semantic maps. The instanceIds are the panoptic maps, and their values are the ids of the
segments. Pixels with the bare label of a thing are a group of objects, which becomes a crowd.
Pixels of a label outside the 19 classes are void.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.doctor import Doctor
from shards.format.label_maps import classes_of, labels_of, read_labels, segments_of
from shards.format.published import table
from shards.format.taxonomy import Category, Taxonomy, rgb
from shards.sources.layout import Layout
from shards.sources.map_item import Description, MapItem, read_split

_LICENSE = {
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


def _describe(root: Path, split: str, tasks: tuple[str, ...]) -> Description:
    rows = table("cityscapes")
    categories = [
        Category(row["id"], row["name"], row["isthing"], rgb(row["color"]))
        for row in rows
        if row["train_id"] != 255 and (row["isthing"] or tasks != ("instance",))
    ]
    taxonomy = Taxonomy.of("cityscapes", categories)
    labels = labels_of(taxonomy, [row["id"] for row in rows])
    return Description(
        taxonomy=taxonomy,
        license=_LICENSE,
        read_truth=partial(_read_truth, labels, taxonomy.things),
        image_id=lambda name: PurePosixPath(name).name,
    )


splits = _LAYOUT.find_splits
read = partial(read_split, _LAYOUT, _describe)


def _read_truth(
    labels: dict[int, int],
    things: Sequence[bool],
    item: MapItem,
    size: tuple[int, int],
    _: Doctor,
) -> dict[str, Any]:
    """Read the annotations of an item and return them as the fields of a sample.

    Args:
        labels: By label, c + 1 for class c and 0 for a label without a class.
        things: For each class, whether it is a thing.
        item: The item.
        size: The image's width and height.
    """
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
            return category, int(id < 1000 and things[category])

        ids = np.where(classes > 0, values, np.uint16(0))
        fields["segments"], fields["segments_map"] = segments_of(ids, entry)
    return fields
