"""The same few pictures of each evaluation, as maps of classes that a viewer can show and hide."""

import numpy as np

from pipeline.distributed import all_gather
from pipeline.pictures.regions import RegionMap, predicted_regions, true_regions
from pipeline.pictures.render import shrink
from pipeline.score.inference import Result
from pipeline.score.picture import Picture
from shards.format.schema import Sample

COUNT = 8
MAX_SIDE = 512  # pixels
TRUTH_OF_TASK = {"panoptic": "panoptic", "instance": "instances", "semantic": "semantic"}


class Gallery:
    """Collects the first images that an evaluation scores, each on the rank that scored it.

    Args:
        task: The task that is trained, whose truth is shown.
    """

    def __init__(self, task: str):
        self._task = task
        self._pictures: dict[int, Picture] = {}

    def add(self, number: int, image: np.ndarray, sample: Sample, result: Result) -> None:
        """Keep an image if it is one of the first; `number` is its index in the set."""
        if number >= COUNT:
            return
        truths = true_regions(sample)
        truth = class_map(truths.get(TRUTH_OF_TASK[self._task]) or next(iter(truths.values())))
        if self._task == "semantic":
            predicted = result.semantic + 1
        else:
            predicted = class_map(predicted_regions(result))
        small, truth = shrink(image, truth.astype(np.int32), MAX_SIDE)
        _, predicted = shrink(image, predicted.astype(np.int32), MAX_SIDE)
        self._pictures[number] = Picture(sample.key, small, truth, predicted)

    def gathered(self) -> list[Picture]:
        """Return the pictures of all ranks in the order of the set. All ranks must call it."""
        pictures = {
            n: picture for part in all_gather(self._pictures) for n, picture in part.items()
        }
        return [pictures[number] for number in sorted(pictures)]


def class_map(found: RegionMap) -> np.ndarray:
    """Return the classes of regions, `int32 [H, W]`: c + 1 for class c, 0 for none."""
    classes = np.zeros(max([0, *(region.id for region in found.regions)]) + 1, np.int32)
    for region in found.regions:
        classes[region.id] = region.category + 1
    return classes[np.where(found.ids < len(classes), found.ids, 0)]
