"""The content of a picture of a segmentation: a map of ids, and the regions in it."""

from typing import NamedTuple

import numpy as np

from pipeline.score.inference import Result
from shards.format.schema import Sample


class Region(NamedTuple):
    """One region of an id map: its id in the map, its class index, and 1 if it is a crowd."""

    id: int
    category: int
    iscrowd: int = 0


class RegionMap(NamedTuple):
    """Regions and the integer map `[H, W]` of their ids, 0 = none."""

    ids: np.ndarray
    regions: list[Region]


def predicted_regions(result: Result) -> RegionMap:
    """Return the panoptic prediction of an image."""
    regions = [Region(segment["id"], segment["category"]) for segment in result.segments]
    return RegionMap(result.panoptic, regions)


def true_regions(sample: Sample) -> dict[str, RegionMap]:
    """Return each truth of a sample by its name: "panoptic", "instances", and "semantic".

    Smaller instances are drawn on top of the larger ones that they overlap.
    """
    found: dict[str, RegionMap] = {}
    if sample.segments_map is not None:
        regions = [Region(n, s.category, s.iscrowd) for n, s in sample.panoptic()]
        found["panoptic"] = RegionMap(sample.segments_map, regions)
    if sample.instances is not None and sample.layers is not None:
        ids = np.zeros(sample.layers.shape[1:], np.int32)
        numbered = list(enumerate(sample.instances, start=1))
        for n, instance in sorted(numbered, key=lambda pair: -pair[1].area):
            ids[sample.layers[instance.layer] == instance.value] = n
        regions = [Region(n, i.category, i.iscrowd) for n, i in numbered]
        found["instances"] = RegionMap(ids, regions)
    if sample.semantic is not None:
        present = np.flatnonzero(np.bincount(sample.semantic.ravel())).tolist()
        regions = [Region(value, value - 1) for value in present if value]
        found["semantic"] = RegionMap(sample.semantic, regions)
    return found
