"""The training truth of one sample as integer maps, and samples as a batch of tensors."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.targets import Targets
from shards.format.schema import TASKS, Instance, Sample

BYTES_PER_PIXEL = 4  # the least per pixel of a batch: RGB and one map


class Truth(NamedTuple):
    """Integer maps and the entries in them: entry n covers `maps[layer[n]] == value[n]`."""

    maps: np.ndarray  # `uint8` or `uint16 [L, H, W]`, 0 = none
    categories: list[int]
    layer: list[int]
    value: list[int]


class Batch(NamedTuple):
    """A micro-batch.

    Attributes:
        images: `uint8 [B, 3, H, W]`, RGB.
        targets: The truth as the criterion takes it.
        sizes: `int64 [B, 2]`, the height and width that are not padding.
        keys: The key of each sample.
        positions: The position of each sample in the order of the run.
        epochs: The epoch of each sample.
        damaged: Descriptions of the damaged samples that samples of the batch replace.
    """

    images: Tensor
    targets: Targets
    sizes: Tensor
    keys: list[str]
    positions: list[int]
    epochs: list[int]
    damaged: list[dict[str, Any]]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`. Copies overlap with compute if the source is pinned."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            targets=self.targets.to(device),
            sizes=self.sizes.to(device, non_blocking=True),
        )

    def image(self, b: int) -> "Batch":
        """Return the micro-batch of image `b` alone."""
        return Batch(
            self.images[b : b + 1],
            Targets(*(part[b : b + 1] for part in self.targets)),
            self.sizes[b : b + 1],
            self.keys[b : b + 1],
            self.positions[b : b + 1],
            self.epochs[b : b + 1],
            [],
        )


def truth_of(sample: Sample, task: str, things: Sequence[bool]) -> Truth:
    """Return the training truth of a task: segments, instances, or classes, without crowds.

    Args:
        sample: The sample, which has the truth that the task needs.
        task: One of TASKS.
        things: For each class, whether it is a thing.
    """
    assert task in TASKS, task
    if task == "instance":
        return Truth(sample.instance_layers, *_columns(sample.instances_or_things(things)))
    if task == "semantic":
        classes = sample.classes()
        present = np.flatnonzero(np.bincount(classes.ravel(), minlength=1)[1:]).tolist()
        return Truth(classes[None], present, [0] * len(present), [c + 1 for c in present])
    assert sample.segments_map is not None, f"{sample.key} has no panoptic truth"
    kept = [(n, segment) for n, segment in sample.panoptic() if not segment.iscrowd]
    categories = [segment.category for _, segment in kept]
    return Truth(sample.segments_map[None], categories, [0] * len(kept), [n for n, _ in kept])


def _columns(instances: Iterable[Instance]) -> tuple[list[int], list[int], list[int]]:
    """Return categories, layers, and values of the instances that are not crowds."""
    kept = [instance for instance in instances if not instance.iscrowd]
    return [i.category for i in kept], [i.layer for i in kept], [i.value for i in kept]


def without_empty(truth: Truth) -> Truth:
    """Return the truth without the entries that have no pixel."""
    counts = [np.bincount(layer.ravel()) for layer in truth.maps]
    kept = [
        n
        for n, (layer, value) in enumerate(zip(truth.layer, truth.value, strict=True))
        if value < len(counts[layer]) and counts[layer][value]
    ]
    columns = ([column[n] for n in kept] for column in truth[1:])
    return Truth(truth.maps, *columns)


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Stack samples of one crop size.

    Truths differ in their numbers of layers and of entries: layers are padded with 0, entries with
    the category -1.
    """
    truths: list[Truth] = [sample["truth"] for sample in samples]
    return Batch(
        images=torch.from_numpy(np.stack([sample["image"] for sample in samples])),
        targets=_targets(truths, samples[0]["image"].shape[-2:]),
        sizes=torch.tensor([sample["size"] for sample in samples]),
        keys=[sample["key"] for sample in samples],
        positions=[sample["position"] for sample in samples],
        epochs=[sample["epoch"] for sample in samples],
        damaged=[row for sample in samples for row in sample.get("damaged", ())],
    )


def _targets(truths: Sequence[Truth], size: tuple[int, int]) -> Targets:
    """Stack truths with maps of `size` (height, width).

    torch has no operations on uint16, so maps with a value past 255 become int32.
    """
    layers = max(truth.maps.shape[0] for truth in truths)
    entries = max(1, *(len(truth.categories) for truth in truths))
    is_small = max(truth.maps.max(initial=0) for truth in truths) < 256
    maps = np.zeros((len(truths), layers, *size), np.uint8 if is_small else np.int32)
    columns = np.full((3, len(truths), entries), -1, np.int64)
    for b, truth in enumerate(truths):
        maps[b, : len(truth.maps)] = truth.maps
        columns[:, b, : len(truth.categories)] = truth.categories, truth.layer, truth.value
    columns[1:] = columns[1:].clip(0)  # padding points to layer 0, value 0
    categories, layer, value = map(torch.from_numpy, columns)
    return Targets(torch.from_numpy(maps), categories, layer, value)
