"""PQ, AP and mIoU of a model on a shard set, from one pass over its images."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.mask2former import Mask2Former
from pipeline.data.stages import read_image
from pipeline.data.store import Store
from pipeline.distributed import raise_on_all_ranks
from pipeline.score.inference import Result, infer
from pipeline.score.instance import InstanceScores
from pipeline.score.panoptic import PanopticQuality
from pipeline.score.semantic import SemanticScores
from pipeline.settings import EvaluationSettings
from shards.format.schema import Sample
from shards.format.taxonomy import Taxonomy

HEADLINE = ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU")
BLANK = np.zeros((32, 32, 3), np.uint8)
METRIC_OF_TASK = {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}


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
        self.instance = InstanceScores(len(self.taxonomy))
        self.semantic = SemanticScores(len(self.taxonomy))

    def update(self, result: Result, sample: Sample) -> None:
        """Count one image."""
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
            for row, value in zip(rows, result.pop("classes"), strict=True):
                if task == "instance" and not row["isthing"]:
                    continue
                row |= value if isinstance(value, dict) else {metric: value}
        scores = {name: value for result in results.values() for name, value in result.items()}
        return _finite(scores | {"classes": rows})


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
    return read_image(sample.image, store.index.key[number]), sample


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
        raise_on_all_ranks(failure)
        parts = [None] * world if rank == 0 else None
        dist.gather_object(scores, parts, dst=0)
        for part in (parts or [])[1:]:
            scores.merge(part)
    return scores.result() if rank == 0 else None
