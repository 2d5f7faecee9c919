"""PQ, AP, and mIoU of a model on a shard set, from one pass over its images."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike

from model.mask2former import Mask2Former
from pipeline.data.store import Store
from pipeline.distributed import from_rank_0, raise_on_all_ranks, rank_and_world
from pipeline.score.inference import Result, infer
from pipeline.score.instance import InstanceScores
from pipeline.score.panoptic import PanopticQuality
from pipeline.score.semantic import SemanticScores
from pipeline.settings import EvaluationSettings
from shards.format.images import image_of
from shards.format.schema import Sample
from shards.format.taxonomy import Taxonomy

BLANK = np.zeros((32, 32, 3), np.uint8)  # the input of a rank that has no image to score


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

    def update(self, result: Result, sample: Sample) -> None:
        """Count one image."""
        predicted = [segment["category"] for segment in result.segments]
        if not {"panoptic", "instance"} & set(self.tasks):
            predicted = result.semantic
        self.classes.update(_true_classes(sample), predicted, result.highest_scores)
        if "panoptic" in self.tasks:
            assert sample.segments_map is not None
            classes = {segment["id"]: segment["category"] for segment in result.segments}
            truth = dict(sample.panoptic())
            self.panoptic.update(result.panoptic, classes, sample.segments_map, truth)
        if "instance" in self.tasks:
            layers = sample.instance_layers
            truth = [
                {"category": i.category, "iscrowd": i.iscrowd, "area": i.area}
                | {"mask": layers[i.layer] == i.value}
                for i in sample.instances_or_things(self.taxonomy.things)
            ]
            size = sample.height, sample.width
            self.instance.update(
                sample.image_id, size, result.scores, result.categories, result.masks, truth
            )
        if "semantic" in self.tasks:
            ignored = len(self.taxonomy)
            classes = sample.classes().astype(np.int64) - 1
            self.semantic.update(result.semantic, np.where(classes < 0, ignored, classes))

    def merge(self, other: "Scores") -> None:
        """Add another rank's images."""
        self.panoptic.merge(other.panoptic)
        self.instance.merge(other.instance)
        self.semantic.merge(other.semantic)
        self.classes.merge(other.classes)

    def result(self) -> dict[str, Any]:
        """Return the scores in percent, None if undefined, and a row per class in `classes`."""
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
            metric = {"panoptic": "PQ", "instance": "AP", "semantic": "IoU"}[task]
            for row, value in zip(rows, result.pop("classes"), strict=True):
                if task == "instance" and not row["isthing"]:
                    continue
                row |= value if isinstance(value, dict) else {metric: value}
        scores = {name: value for result in results.values() for name, value in result.items()}
        return _finite(scores | {"classes": rows})


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


def _finite(value: Any) -> Any:
    """Replace NaN by None, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    model: Mask2Former,
    store: Store,
    settings: EvaluationSettings,
    device: torch.device,
    advance: Callable[[], None] = lambda: None,
    seen: Callable[[int, np.ndarray, Sample, Result], None] | None = None,
) -> dict[str, Any]:
    """Score a model on a shard set, whose images the ranks of a process group share.

    Every rank runs the network the same number of times, because a model whose parameters are
    sharded needs all ranks in each forward; each image counts once.

    Args:
        model: The network.
        store: The shard set.
        settings: The number and the size of the images.
        device: The device of the network.
        advance: Called after each image.
        seen: Called for each image that this rank scored, with its number, the decoded image, its
            truth, and the result.

    Returns:
        The scores as `Scores.result` returns them, on every rank, with the `images` and the `data`
        that they belong to: the number of images, and the fingerprint of the set.

    Raises:
        DataError: An image is damaged. A single process raises at once; the ranks of a group raise
            together after the last image, because scores of fewer images are not comparable.
    """
    rank, world = rank_and_world()
    taxonomy = store.manifest.taxonomy
    scores = Scores(taxonomy, store.manifest.tasks)
    count = min(len(store), settings.images or len(store))
    store.prefetch(range(store.index.shard[count - 1] + 1))
    was_training = model.training
    model.eval()
    failure: Exception | None = None
    for first in range(0, count, world):
        number = first + rank
        sample, image = None, BLANK
        try:
            sample = store.load(min(number, count - 1))
            image = image_of(sample)
        except Exception as error:
            if world == 1:
                raise
            failure = failure or error  # the other ranks still need this rank's forward
        result = infer(model, image, settings, taxonomy.things, device)
        if sample is not None and number < count and not failure:
            scores.update(result, sample)
            if seen is not None:
                seen(number, image, sample, result)
        advance()
    model.train(was_training)
    if world > 1:
        raise_on_all_ranks(failure)
    result = scores.result() if world == 1 else _merged(scores, rank, world)
    return {"images": count, "data": store.manifest.fingerprint, **result}


def _merged(scores: Scores, rank: int, world: int) -> dict[str, Any]:
    """Return the scores of all ranks; only rank 0 receives the counters, which are large."""
    parts: list[Scores] | None = [scores] * world if rank == 0 else None
    dist.gather_object(scores, parts, dst=0)
    for part in (parts or [])[1:]:
        scores.merge(part)
    return from_rank_0(scores.result)
