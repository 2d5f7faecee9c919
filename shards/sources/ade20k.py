"""ADE20K's layout: SceneParse150, the folder ADEChallengeData2016. It serves all three tasks.

    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png            0 = no class, 1 to 150 = class
    annotations_instance/{training,validation}/*.png   R = the n-th of the 100 things, G = instance

Class c is label c + 1. A set with instances alone has the 100 things in the same order.

The maps in annotations/ are the semantic maps. Panoptic maps are composed of the stuff classes of
the semantic map with the instances on top. A thing's pixels outside every instance are void. The
id of a stuff segment is its label, and the id of an instance is 256 R + G.
"""

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.doctor import Doctor, Reject
from shards.format.label_maps import classes_of, labels_of, read_labels, segments_of
from shards.format.published import table
from shards.format.taxonomy import Category, Taxonomy, rgb
from shards.sources.layout import Layout
from shards.sources.map_item import Description, MapItem, read_split

_LICENSE = {
    "name": "ADE20K: non-commercial research and education",
    "url": "https://ade20k.csail.mit.edu/terms/",
}
_SEMANTIC, _INSTANCE = "annotations", "annotations_instance"
_LAYOUT = Layout(
    source="ade20k",
    splits={"train": "training", "val": "validation"},
    images=("images/{}", (".jpg",)),
    maps={kind: (f"{kind}/{{}}", ".png") for kind in (_SEMANTIC, _INSTANCE)},
    needs={
        "panoptic": (_SEMANTIC, _INSTANCE),
        "instance": (_INSTANCE,),
        "semantic": (_SEMANTIC,),
    },
)


def _describe(root: Path, split: str, tasks: tuple[str, ...]) -> Description:
    categories = [
        Category(row["id"], row["name"], row["isthing"], rgb(row["color"]))
        for row in table("ade20k")
        if row["isthing"] or tasks != ("instance",)
    ]
    taxonomy = Taxonomy.of("ade20k", categories)
    return Description(
        taxonomy=taxonomy, license=_LICENSE, read_truth=partial(_read_truth, taxonomy, tasks)
    )


splits = _LAYOUT.find_splits
read = partial(read_split, _LAYOUT, _describe)


def _read_truth(
    taxonomy: Taxonomy, tasks: Collection[str], item: MapItem, size: tuple[int, int], doctor: Doctor
) -> dict[str, Any]:
    """Read the annotations of an item and return them as the fields of a sample."""
    labels = labels_of(taxonomy, [0])
    # For the n-th thing, its c + 1; and for every c + 1, whether c is a thing. 0 means "no class".
    things = np.array([0, *(np.flatnonzero(taxonomy.things) + 1)], np.uint16)
    is_thing = np.array([False, *taxonomy.things])
    maps = item.raw.maps
    fields: dict[str, Any] = {}
    ids = classes = np.uint16(0)
    if _SEMANTIC in maps:
        values = read_labels(maps[_SEMANTIC], size)
        classes = classes_of(values, labels, maps[_SEMANTIC].name)
        ids = np.where((classes > 0) & ~is_thing[classes], values, ids)
        if "semantic" in tasks:
            fields["semantic"] = classes
    if _INSTANCE in maps:
        red, green, _ = np.moveaxis(read_labels(maps[_INSTANCE], size, 3).astype(np.uint16), -1, 0)
        inside = green > 0
        if (unknown := red[inside & ((red < 1) | (red >= len(things)))]).size:
            raise Reject(14, f"{maps[_INSTANCE].name} has an instance of the thing {unknown[0]}")
        other = is_thing[classes] & (classes != things[np.where(inside, red, 0)])
        if differing := np.count_nonzero(inside & other):
            doctor.note(21, f"{differing} pixels of instances are another thing in {_SEMANTIC}")
        ids = np.where(inside, red << 8 | green, ids)
        fields["segments"], fields["segments_map"] = segments_of(
            ids, lambda id: ((int(things[id >> 8]) or labels[id]) - 1, 0)
        )
    return fields
