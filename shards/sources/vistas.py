"""Mapillary Vistas' raw layout, version 1.2: each task has the truth its publisher made for it.

    config.json                            the labels; a label is a place in this list
    {training,validation}/images/*.jpg
    {training,validation}/labels/*.png     semantic: label
    {training,validation}/instances/*.png  instances: 256 label + n
    {training,validation}/panoptic/*.png   panoptic: ids of panoptic_2018.json beside them, where
                                           a category id is label + 1

Classes are the labels that config.json marks for evaluation; the others are ignored, or void.
"""

import json
from array import array
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from shards.doctor import Doctor, Reject
from shards.errors import DataError
from shards.format.schema import INSTANCES, SEGMENTS, SEMANTIC, Instance, Segment
from shards.format.taxonomy import Category, Taxonomy
from shards.raw.images import read_ids
from shards.raw.json_entries import damaged, entries, read_entries
from shards.raw.masks import check_area, number_segments
from shards.sources.label_maps import classes_of, read_labels, segments_of
from shards.sources.layout import Layout, MapItem
from shards.sources.split import Split

_LICENCE = {
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

splits = _LAYOUT.found


def read(
    root: Path, split: str, tasks: Collection[str] | None, report: Callable[[str], None]
) -> Split:
    """List a split and read its JSON; its pictures wait for `load` of its items.

    With `tasks` None those are served for which every image has its truth, and `report` hears of
    the others. Raises UsageError for a split that is not there, DataError for truth that is not.
    """
    tasks, files = _LAYOUT.gather(root, split, tasks, report)
    rows = _labels(root / "config.json")
    taxonomy = Taxonomy.of(
        "vistas",
        [
            Category(label + 1, row["readable"], row["instances"], tuple(row["color"]))
            for label, row in enumerate(rows)
            if row["evaluate"] and (row["instances"] or tasks != ("instance",))
        ],
    )
    labels = dict.fromkeys(range(len(rows)), 0)
    labels |= {c.id - 1: n for n, c in enumerate(taxonomy.categories, start=1)}
    path = root / _LAYOUT.splits[split] / "panoptic/panoptic_2018.json"
    places, digests = _annotations(path) if "panoptic" in tasks else ({}, {})
    return _LAYOUT.split(
        split,
        tasks,
        taxonomy,
        files,
        partial(_truth, taxonomy, labels, path),
        licence=_LICENCE,
        said=digests.get,
        places=places.get,
    )


def _labels(path: Path) -> list[dict[str, Any]]:
    """The rows of config.json. Raises DataError if they are not those of version 1.2."""
    rows = _json(path, "labels")
    for key, kind in (("readable", str), ("instances", bool), ("evaluate", bool), ("color", list)):
        if not all(isinstance(row, dict) and isinstance(row.get(key), kind) for row in rows):
            raise DataError(f"{path} has labels without {key}; get that of version 1.2")
    return rows


def _segment(entry: dict[str, Any], taxonomy: Taxonomy) -> Segment:
    try:
        return Segment(
            entry["id"],
            taxonomy.index(entry["category_id"]),
            entry.get("iscrowd", 0),
            entry["area"],
            entry["bbox"],
        )
    except KeyError as error:
        raise Reject(22, f"a segment has no {error}") from error
    except DataError as error:
        raise Reject(13, str(error)) from error


def _segments_info(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return [one for annotation in annotations for one in annotation["segments_info"]]
    except (KeyError, TypeError) as error:
        raise Reject(22, f"an annotation lacks {error}") from error


def _json(path: Path, key: str) -> list[Any]:
    """The list that a JSON document has under `key`."""
    try:
        return list(json.loads(path.read_bytes())[key])
    except FileNotFoundError:
        raise DataError(f"{path} is missing; unpack the whole data set") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}); get it anew") from error


def _annotations(path: Path) -> tuple[dict[str, array], dict[str, int]]:
    """By image id, the places of its annotations in the file, and a digest of them."""
    places: dict[str, array] = {}
    digests: dict[str, int] = {}
    try:
        for entry in entries(path, ("annotations",)):
            if entry.name == "annotations":
                image_id = entry.value["image_id"]
                places.setdefault(image_id, array("q")).extend((entry.start, entry.end))
                seed = digests.get(image_id, 0)
                digests[image_id] = xxhash.xxh3_64_intdigest(entry.raw, seed=seed)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; unpack the whole data set") from None
    except (KeyError, TypeError) as error:
        raise damaged(path, entry.start, f"an annotation lacks {error}") from error
    return places, digests


def _truth(
    taxonomy: Taxonomy,
    labels: dict[int, int],
    panoptic_json: Path,
    item: MapItem,
    size: tuple[int, int],
    doctor: Doctor,
) -> dict[str, Any]:
    """The Record's fields of truth; `labels` gives c + 1 for class c, 0 for none."""
    maps = item.raw.maps
    fields: dict[str, Any] = {}
    if "labels" in maps:
        path = maps["labels"]
        fields["semantic"] = classes_of(read_labels(path, size), labels, path.name)
    if "instances" in maps:
        path, things = maps["instances"], sum(taxonomy.things)
        values = read_labels(path, size)
        classes = classes_of(values >> 8, labels, path.name)
        ids = np.where((classes > 0) & (classes <= things), values + np.uint32(1), np.uint32(0))
        segments, layer = segments_of(ids, lambda id: (labels[id - 1 >> 8] - 1, 0))
        fields["layers"] = layer[None]
        fields["instances"] = [
            Instance(**asdict(segment) | {"id": segment.id - 1}, layer=0, value=value)
            for value, segment in enumerate(segments, start=1)
        ]
    if "panoptic" in maps:
        ids = read_ids(maps["panoptic"], size)
        listed = read_entries(panoptic_json, item.places or ())
        fields["segments"] = [_segment(one, taxonomy) for one in _segments_info(listed)]
        numbered, areas = number_segments(ids, [one.id for one in fields["segments"]])
        for segment, area in zip(fields["segments"], areas, strict=True):
            check_area(f"segment {segment.id}", segment.area, area, doctor)
        fields["segments_map"] = numbered
    return fields
