"""Mapillary Vistas' layout, version 1.2: the publisher has separate annotations for every task.

    config.json                            the labels; a label is an index into this list
    {training,validation}/images/*.jpg
    {training,validation}/labels/*.png     semantic: label
    {training,validation}/instances/*.png  instances: 256 · label + n, for instance n of the label
    {training,validation}/panoptic/*.png   panoptic: ids of panoptic_2018.json in the same folder;
                                           there, a category id is label + 1

The classes are the labels that config.json marks for evaluation, in its order. The others are
ignored (void).
"""

from array import array
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shards.doctor import Doctor
from shards.errors import DataError
from shards.files import read_json
from shards.format.label_maps import classes_of, read_labels, segments_of
from shards.format.schema import INSTANCES, SEGMENTS, SEMANTIC, Instance
from shards.format.taxonomy import Category, Taxonomy, rgb
from shards.raw.images import read_ids
from shards.raw.json_entries import damaged, iterate_entries
from shards.sources.coco_entry import read_segments
from shards.sources.layout import Layout
from shards.sources.map_item import Description, MapItem, read_split

_LICENSE = {
    "name": "Mapillary Vistas research edition",
    "url": "https://www.mapillary.com/dataset/vistas",
}
_LAYOUT = Layout(
    source="vistas",
    splits={"train": "training", "val": "validation"},
    images=("{}/images", (".jpg",)),
    maps={kind: (f"{{}}/{kind}", ".png") for kind in ("labels", "instances", "panoptic")},
    needs={"panoptic": ("panoptic",), "instance": ("instances",), "semantic": ("labels",)},
    members={"panoptic": SEGMENTS, "instance": INSTANCES, "semantic": SEMANTIC},
)


def _describe(root: Path, split: str, tasks: tuple[str, ...]) -> Description:
    rows = _load_labels(root / "config.json")
    categories = [
        Category(label + 1, row["readable"], row["instances"], row["color"])
        for label, row in enumerate(rows)
        if row["evaluate"] and (row["instances"] or tasks != ("instance",))
    ]
    taxonomy = Taxonomy.of("vistas", categories)
    labels = dict.fromkeys(range(len(rows)), 0)
    labels |= {c.id - 1: n for n, c in enumerate(taxonomy.categories, start=1)}
    path = root / _LAYOUT.splits[split] / "panoptic/panoptic_2018.json"
    ranges, digests = _index_annotations(path) if "panoptic" in tasks else ({}, {})
    return Description(
        taxonomy=taxonomy,
        license=_LICENSE,
        read_truth=partial(_read_truth, taxonomy, labels, path),
        depends=digests.get,
        ranges=ranges.get,
    )


splits = _LAYOUT.find_splits
read = partial(read_split, _LAYOUT, _describe)


def _load_labels(path: Path) -> list[dict[str, Any]]:
    """Load the labels of config.json.

    Raises:
        DataError: The file is missing, damaged, or not that of version 1.2.
    """
    try:
        rows = list(read_json(path)["labels"])
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the file is damaged ({error!r})", where=path, fix="get the file again"
        ) from error
    for key, kind in (("readable", str), ("instances", bool), ("evaluate", bool), ("color", list)):
        if not all(isinstance(row, dict) and isinstance(row.get(key), kind) for row in rows):
            raise DataError(
                f"{key} is missing or of the wrong type in a label",
                where=path,
                fix="get the file of version 1.2",
            )
    try:
        return [row | {"color": rgb(row["color"])} for row in rows]
    except DataError as error:
        raise error.at(path) from error


def _missing(path: Path) -> DataError:
    return DataError("the file is missing", where=path, fix="unpack the whole data set")


def _index_annotations(path: Path) -> tuple[dict[str, "array[int]"], dict[str, int]]:
    """Return, by image id, the byte ranges of the image's annotations and a digest of them."""
    ranges: dict[str, array[int]] = {}
    digests: dict[str, int] = {}
    if not path.is_file():
        raise _missing(path)
    for entry in iterate_entries(path, ("annotations",)):
        if entry.name != "annotations":
            continue
        try:
            image_id = entry.value["image_id"]
        except (KeyError, TypeError) as error:
            raise damaged(path, entry.start, "an annotation has no image_id") from error
        ranges.setdefault(image_id, array("q")).extend((entry.start, entry.end))
        seed = digests.get(image_id, 0)
        digests[image_id] = xxhash.xxh3_64_intdigest(entry.raw, seed=seed)
    return ranges, digests


def _read_truth(
    taxonomy: Taxonomy,
    labels: dict[int, int],
    panoptic_json: Path,
    item: MapItem,
    size: tuple[int, int],
    doctor: Doctor,
) -> dict[str, Any]:
    """Read the annotations of an item and return them as the fields of a sample.

    Args:
        taxonomy: The classes.
        labels: Maps each label to its class index + 1, or to 0 if it has no class.
        panoptic_json: The file of the panoptic annotations.
        item: The item.
        size: The image's width and height.
        doctor: Receives the findings that do not reject the sample.
    """
    maps = item.raw.maps
    fields: dict[str, Any] = {}
    if "labels" in maps:
        path = maps["labels"]
        fields["semantic"] = classes_of(read_labels(path, size), labels, path.name)
    if "instances" in maps:
        path = maps["instances"]
        is_thing = np.array([False, *taxonomy.things])  # by c + 1
        values = read_labels(path, size)
        classes = classes_of(values >> 8, labels, path.name)
        # 0 is a valid id, that of the first instance of label 0: shift ids by 1 to keep 0 for void
        ids = np.where(is_thing[classes], values + np.uint32(1), np.uint32(0))
        segments, layer = segments_of(ids, lambda id: (labels[id - 1 >> 8] - 1, 0))
        fields["layers"] = layer[None]
        fields["instances"] = [
            Instance(int(s.id) - 1, s.category, s.iscrowd, s.area, s.bbox, layer=0, value=value)
            for value, s in enumerate(segments, start=1)
        ]
    if "panoptic" in maps:
        ids = read_ids(maps["panoptic"], size)
        fields["segments"], fields["segments_map"] = read_segments(
            panoptic_json, item.ranges or (), ids, taxonomy, doctor
        )
    return fields
