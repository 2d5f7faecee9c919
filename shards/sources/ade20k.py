"""ADE20K's raw layout (SceneParse150, the folder ADEChallengeData2016), truth of all three tasks.

    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png            0 = none, 1 to 150 = class
    annotations_instance/{training,validation}/*.png   R = which of the 100 things, G = instance

The first maps are the semantic truth. Panoptic truth is composed: the stuff of the semantic map,
and on top the instances; a thing's pixels in no instance are void (mask2former.md 3.2). The id of
a stuff segment is its label, that of an instance 256 R + G.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.doctor import Doctor, Reject
from shards.format.taxonomy import Category, Taxonomy
from shards.sources.label_maps import classes_of, labels_of, read_labels, segments_of
from shards.sources.layout import Layout, MapItem, table
from shards.sources.split import Split

_LICENCE = {
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

splits = _LAYOUT.found


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """List a split; its pictures wait for `load` of its items.

    With `tasks` None those are served for which every image has its truth, and `report` hears of
    the others. Raises UsageError for a split that is not there, DataError for truth that is not.
    """
    tasks, files = _LAYOUT.gather(root, split, tasks, report)
    categories = [Category(**row | {"color": tuple(row["color"])}) for row in table("ade20k")]
    taxonomy = Taxonomy.of("ade20k", [c for c in categories if c.isthing or tasks != ("instance",)])
    truth = partial(_truth, taxonomy, tasks)
    return _LAYOUT.split(split, tasks, taxonomy, files, truth, licence=_LICENCE)


def _truth(
    taxonomy: Taxonomy, tasks: Collection[str], item: MapItem, size: tuple[int, int], doctor: Doctor
) -> dict[str, Any]:
    """The Record's fields of truth."""
    things = sum(taxonomy.things)
    labels = labels_of(taxonomy, [0])
    maps = item.raw.maps
    fields: dict[str, Any] = {}
    ids = classes = np.uint16(0)
    if _SEMANTIC in maps:
        values = read_labels(maps[_SEMANTIC], size)
        classes = classes_of(values, labels, maps[_SEMANTIC].name)
        ids = np.where(classes > things, values, ids)
        if "semantic" in tasks:
            fields["semantic"] = classes
    if _INSTANCE in maps:
        red, green, _ = np.moveaxis(read_labels(maps[_INSTANCE], size, 3).astype(np.uint16), -1, 0)
        instance = green > 0
        if (strange := red[instance & ((red < 1) | (red > things))]).size:
            raise Reject(14, f"{maps[_INSTANCE].name} has an instance of the thing {strange[0]}")
        if other := np.count_nonzero(
            instance & (classes > 0) & (classes <= things) & (classes != red)
        ):
            doctor.note(21, f"{other} pixels of instances are another thing in {_SEMANTIC}")
        ids = np.where(instance, red << 8 | green, ids)
        fields["segments"], fields["segments_map"] = segments_of(
            ids, lambda id: ((id >> 8 or labels[id]) - 1, 0)
        )
    return fields
