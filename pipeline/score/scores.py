"""The counters of all metrics that the truth of a shard set allows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import find_objects

from pipeline.score.analysis import analyze
from pipeline.score.boundary import boundary
from pipeline.score.inference import Result
from pipeline.score.instance import InstanceScores
from pipeline.score.panoptic import PanopticQuality
from pipeline.score.record import Image, Record
from pipeline.score.semantic import SemanticScores
from shards.format.schema import Sample
from shards.format.taxonomy import Taxonomy


@dataclass
class Scores:
    """Counters of each metric that the truth allows; `merge` adds those of another rank exactly."""

    taxonomy: Taxonomy
    tasks: Iterable[str]
    panoptic: PanopticQuality = field(init=False)
    instance: InstanceScores = field(init=False)
    semantic: SemanticScores = field(init=False)
    classes: "ClassCounts" = field(init=False)

    def __post_init__(self):
        self.panoptic = PanopticQuality(self.taxonomy.things)
        self.instance = InstanceScores(len(self.taxonomy))
        self.semantic = SemanticScores(len(self.taxonomy))
        self.classes = ClassCounts.of(len(self.taxonomy))
        self.images: list[Image] = []

    def update(self, result: Result, sample: Sample, number: int = 0) -> None:
        """Count one image, whose index in the shard set is `number`."""
        key = sample.key
        self.images.append(Image(key, number, sample.height, sample.width))
        predicted = [segment["category"] for segment in result.segments]
        if not {"panoptic", "instance"} & set(self.tasks):
            predicted = result.semantic
        self.classes.update(_true_classes(sample), predicted, result.highest_scores)
        if "panoptic" in self.tasks:
            assert sample.segments_map is not None
            classes = {segment["id"]: segment["category"] for segment in result.segments}
            self.panoptic.update(
                result.panoptic,
                classes,
                sample.segments_map,
                dict(sample.panoptic()),
                image=key,
                scores=[segment["score"] for segment in result.segments],
                boundaries=(boundary(result.panoptic), boundary(sample.segments_map)),
                box=_boxes(result.panoptic, list(classes)),
            )
        if "instance" in self.tasks:
            layers = sample.instance_layers
            truth = [
                {"category": i.category, "iscrowd": i.iscrowd, "area": i.area}
                | {"mask": layers[i.layer] == i.value}
                for i in sample.instances_or_things(self.taxonomy.things)
            ]
            size = sample.height, sample.width
            self.instance.update(key, size, result.scores, result.categories, result.masks, truth)
        if "semantic" in self.tasks:
            ignored = len(self.taxonomy)
            classes = sample.classes().astype(np.int64) - 1
            truth = np.where(classes < 0, ignored, classes)
            edges = boundary(result.semantic), boundary(truth)
            self.semantic.update(result.semantic, truth, key, edges)

    def merge(self, other: "Scores") -> None:
        """Add another rank's images."""
        self.images += other.images
        self.panoptic.merge(other.panoptic)
        self.instance.merge(other.instance)
        self.semantic.merge(other.semantic)
        self.classes.merge(other.classes)

    def record(self, data: str) -> Record:
        """Return the counters of each image of a set, whose fingerprint is `data`."""
        parts = {
            task: [image for _, image in getattr(self, task).images]
            for task in ("panoptic", "instance", "semantic")
            if task in self.tasks
        }
        names, things = list(self.taxonomy.names), list(self.taxonomy.things)
        about = {"data": data, "names": names, "things": things}
        return Record(about, sorted(self.images), **parts)

    def result(self, data: str = "") -> dict[str, Any]:
        """Return the scores in percent, None if undefined.

        `classes` has a row per class, and `analysis` the reasons that `analyze` finds.
        """
        of_task = {
            "panoptic": self.panoptic.result,
            "instance": self.instance.result,
            "semantic": self.semantic.result,
        }
        results = {task: of_task[task]() for task in of_task if task in self.tasks}
        rows = [
            {"name": c.name, "isthing": c.isthing} | counts
            for c, counts in zip(self.taxonomy.categories, self.classes.rows(), strict=True)
        ]
        for task, result in results.items():
            for row, values in zip(rows, result.pop("classes"), strict=True):
                if task != "instance" or row["isthing"]:
                    row |= values
        scores = {name: value for result in results.values() for name, value in result.items()}
        return finite(scores | {"analysis": analyze(self.record(data)), "classes": rows})


@dataclass
class ClassCounts:
    """In how many images each class is true and predicted, and its highest score, all `[K]`."""

    images: np.ndarray
    predicted: np.ndarray
    highest_score: np.ndarray

    @classmethod
    def of(cls, classes: int) -> "ClassCounts":
        """Return the counts of no images."""
        return cls(np.zeros(classes, int), np.zeros(classes, int), np.zeros(classes))

    def update(self, true: np.ndarray, predicted: ArrayLike, highest: np.ndarray) -> None:
        """Count one image: its true classes, its predicted ones, and the highest scores `[K]`."""
        self.images[np.unique(true)] += 1
        self.predicted[np.unique(np.asarray(predicted, int))] += 1
        np.maximum(self.highest_score, highest, out=self.highest_score)

    def merge(self, other: "ClassCounts") -> None:
        """Add another rank's images."""
        self.images += other.images
        self.predicted += other.predicted
        np.maximum(self.highest_score, other.highest_score, out=self.highest_score)

    def rows(self) -> list[dict[str, Any]]:
        """Return the counts of each class."""
        return [
            {"images": images, "predicted_in": predicted, "highest_score": round(score, 4)}
            for images, predicted, score in zip(
                self.images.tolist(),
                self.predicted.tolist(),
                self.highest_score.tolist(),
                strict=True,
            )
        ]


def _true_classes(sample: Sample) -> np.ndarray:
    """Return the classes that occur in the truth of a sample, without crowds."""
    entries = sample.segments if sample.segments is not None else sample.instances
    if entries is None:
        classes = np.unique(sample.classes().astype(int))  # 0 is ignored
        return classes[classes > 0] - 1
    return np.array([entry.category for entry in entries if not entry.iscrowd], int)


def _boxes(ids: np.ndarray, listed: list[int]) -> np.ndarray:
    """Return the left, top, width, and height of each id of a map, `int32 [N, 4]`."""
    found = find_objects(ids, max(listed, default=0))
    boxes = [(x.start, y.start, x.stop - x.start, y.stop - y.start)
             for y, x in (found[id - 1] for id in listed)]  # fmt: skip
    return np.array(boxes, np.int32).reshape(-1, 4)


def finite(value: Any) -> Any:
    """Replace NaN by None, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
