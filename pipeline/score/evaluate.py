"""PQ, AP and mIoU of a model on a shard set, from one pass over its images."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.mask2former import Mask2Former
from pipeline.data.batch import truth_of
from pipeline.data.stages import read_image
from pipeline.data.store import Store
from pipeline.distributed import raise_together
from pipeline.score.inference import InferenceSettings, Result, infer
from pipeline.score.instance import InstanceScores
from pipeline.score.panoptic import PanopticQuality
from pipeline.score.semantic import SemanticScores
from shards.format.schema import Sample
from shards.format.taxonomy import Taxonomy

HEADLINE = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU")
BLANK = np.zeros((32, 32, 3), np.uint8)
METRIC_OF_TASK = {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}


@dataclass
class EvaluationSettings(InferenceSettings):
    """Evaluate every `every_steps` steps and at the end, on the first `images` of the val set
    (all: null); `at_start` scores the untrained net too."""

    every_steps: int = 5000
    images: int | None = None
    at_start: bool = False


@dataclass
class Scores:
    """Counters of every metric the truth allows; those of several ranks merge exactly."""

    taxonomy: Taxonomy
    tasks: Iterable[str]
    panoptic: PanopticQuality = field(init=False)
    instance: InstanceScores = field(init=False)
    semantic: SemanticScores = field(init=False)

    def __post_init__(self):
        self.panoptic = PanopticQuality(self.taxonomy.things)
        self.instance = InstanceScores(sum(self.taxonomy.things))
        self.semantic = SemanticScores(len(self.taxonomy.categories))

    def update(self, result: Result, sample: Sample) -> None:
        """Count one image."""
        document = sample["json"]
        if "panoptic" in self.tasks:
            truth = [s | {"id": n} for n, s in enumerate(document["segments"], start=1)]
            self.panoptic.update(result.panoptic, result.segments, sample["segments"], truth)
        if "instance" in self.tasks:
            size = document["height"], document["width"]
            truth = _true_instances(sample, sum(self.taxonomy.things))
            self.instance.update(
                document["image_id"], size, result.scores, result.categories, result.masks, truth
            )
        if "semantic" in self.tasks:
            ignored = len(self.taxonomy.categories)
            classes = truth_of(sample, "semantic", 0).maps[0].astype(np.int64) - 1
            self.semantic.update(result.semantic, np.where(classes < 0, ignored, classes))

    def merge(self, other: "Scores") -> None:
        """Add another rank's images."""
        self.panoptic.merge(other.panoptic)
        self.instance.merge(other.instance)
        self.semantic.merge(other.semantic)

    def result(self) -> dict[str, Any]:
        """Percent by name, null where undefined, and a row for every class under `classes`."""
        of_task = {
            "panoptic": self.panoptic.result,
            "instance": self.instance.result,
            "semantic": self.semantic.result,
        }
        results = {task: of_task[task]() for task in of_task if task in self.tasks}
        rows = [{"name": c.name, "isthing": c.isthing} for c in self.taxonomy.categories]
        for task, result in results.items():
            metric = {"panoptic": "PQ", "instance": "AP", "semantic": "IoU"}[task]
            for row, value in zip(rows, result.pop("classes"), strict=False):
                row |= value if isinstance(value, dict) else {metric: value}
        scores = {name: value for result in results.values() for name, value in result.items()}
        return _finite(scores | {"classes": rows})


def _true_instances(sample: Sample, num_things: int) -> list[dict[str, Any]]:
    """Instance truth, crowds included: the set's own, else the thing segments."""
    document = sample["json"]
    if sample["layers"] is not None:
        return [
            i | {"mask": sample["layers"][i["layer"]] == i["value"]} for i in document["instances"]
        ]
    return [
        s | {"mask": sample["segments"] == n}
        for n, s in enumerate(document["segments"], start=1)
        if s["category"] < num_things
    ]


def _finite(value: Any) -> Any:
    """JSON has no NaN: undefined scores become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_sample(store: Store, number: int) -> tuple[np.ndarray, Sample]:
    """RGB image u8 [H,W,3] and the whole truth of one sample."""
    sample = store.load(number)
    return read_image(sample["image"], store.index.key[number]), sample


def evaluate(
    model: Mask2Former,
    store: Store,
    settings: EvaluationSettings,
    device: torch.device,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """Score `model` on the val set; ranks of a process group share the images.

    Every rank runs the network equally often (a sharded model needs all of them), and each image
    counts once. Returns the scores on rank 0, None elsewhere. `advance` is called at each image.
    Raises DataError for an image that is damaged: alone at once; of several ranks all do, in the
    end, since a score of fewer images could not be compared.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    taxonomy = store.manifest.taxonomy
    scores = Scores(taxonomy, store.manifest.tasks)
    count = min(len(store), settings.images or len(store))
    store.prefetch(range(store.index.shard[count - 1] + 1))
    was_training = model.training
    model.eval()
    failure: Exception | None = None
    for first in range(0, count, world):
        number = first + rank
        try:
            image, sample = load_sample(store, min(number, count - 1))
        except Exception as error:
            if world == 1:
                raise
            failure, image = failure or error, BLANK  # the other ranks still need this one's net
        result = infer(model, image, settings, taxonomy.things, device)
        if number < count and not failure:
            scores.update(result, sample)
        advance()
    model.train(was_training)
    if world > 1:
        raise_together(failure)
        parts = [None] * world if rank == 0 else None
        dist.gather_object(scores, parts, dst=0)
        for part in (parts or [])[1:]:
            scores.merge(part)
    return scores.result() if rank == 0 else None
