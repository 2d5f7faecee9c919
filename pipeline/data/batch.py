"""One sample's truth as integer maps, and samples as a batch of tensors."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shards.format.schema import TASKS, Sample

BYTES_PER_PIXEL = 4  # of a batch at least: RGB and one map


class Truth(NamedTuple):
    """Integer maps and their entries: entry n is where `maps[layer[n]] == value[n]`."""

    maps: np.ndarray  # u8 | u16 [layers, H, W], 0 = none
    categories: list[int]
    layer: list[int]
    value: list[int]


class Batch(NamedTuple):
    """A micro-batch. Padding entries have category -1."""

    images: Tensor  # u8 [B, 3, H, W], RGB
    maps: Tensor  # u8 | i32 [B, layers, H, W], 0 = none
    categories: Tensor  # i64 [B, N], -1 = padding
    layer: Tensor  # i64 [B, N]
    value: Tensor  # i64 [B, N]
    sizes: Tensor  # i64 [B, 2], height and width that are not padding
    keys: list[str]
    positions: list[int]
    epochs: list[int]
    damaged: list[dict[str, Any]]  # what samples of the batch stand in for

    def to(self, device: torch.device) -> "Batch":
        """Tensors on `device`; copies overlap with compute where the source is pinned."""
        return Batch(*(
            part.to(device, non_blocking=True) if isinstance(part, Tensor) else part
            for part in self
        ))  # fmt: skip


def truth_of(sample: Sample, task: str, num_things: int) -> Truth:
    """The training truth of `task`: panoptic segments, instances, or classes; crowds are dropped.

    The first `num_things` classes are things. Instances come from the thing segments where a set
    has no instance truth of its own, semantic classes where it has no semantic truth.
    """
    assert task in TASKS, task
    segments = sample["json"].get("segments", [])
    if task == "instance" and sample["layers"] is not None:
        entries = [
            (i["category"], i["layer"], i["value"])
            for i in sample["json"]["instances"] if not i["iscrowd"]
        ]  # fmt: skip
        return Truth(sample["layers"], *_columns(entries))
    if task == "semantic":
        if sample["semantic"] is not None:
            maps = sample["semantic"][None]
        else:
            classes = np.zeros(len(segments) + 1, np.uint16)
            classes[1:] = [segment["category"] + 1 for segment in segments]
            maps = classes[sample["segments"]][None]
        present = np.flatnonzero(np.bincount(maps.ravel(), minlength=1)[1:])
        return Truth(maps, *_columns([(int(c), 0, int(c) + 1) for c in present]))
    kept = [
        (segment["category"], 0, value)
        for value, segment in enumerate(segments, start=1)
        if not segment["iscrowd"] and (task == "panoptic" or segment["category"] < num_things)
    ]
    return Truth(sample["segments"][None], *_columns(kept))


def _columns(entries: list[tuple[int, int, int]]) -> list[list[int]]:
    return [list(column) for column in zip(*entries, strict=True)] or [[], [], []]


def without_empty(truth: Truth) -> Truth:
    """The entries that still have a pixel."""
    counts = [np.bincount(layer.ravel()) for layer in truth.maps]
    kept = [
        entry
        for entry in zip(truth.categories, truth.layer, truth.value, strict=True)
        if entry[2] < len(counts[entry[1]]) and counts[entry[1]][entry[2]]
    ]
    return Truth(truth.maps, *_columns(kept))


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stack samples of one crop size, padding layers with 0 and entries with category -1."""
    truths = [sample["truth"] for sample in samples]
    layers = max(truth.maps.shape[0] for truth in truths)
    entries = max(1, *(len(truth.categories) for truth in truths))
    small = max(truth.maps.max(initial=0) for truth in truths) < 256
    side = samples[0]["image"].shape[-2:]
    maps = np.zeros((len(samples), layers, *side), np.uint8 if small else np.int32)
    columns = np.full((3, len(samples), entries), -1, np.int64)
    for b, truth in enumerate(truths):
        maps[b, : len(truth.maps)] = truth.maps
        columns[:, b, : len(truth.categories)] = truth.categories, truth.layer, truth.value
    columns[1:] = columns[1:].clip(0)
    return Batch(
        images=torch.from_numpy(np.stack([sample["image"] for sample in samples])),
        maps=torch.from_numpy(maps),
        categories=torch.from_numpy(columns[0]),
        layer=torch.from_numpy(columns[1]),
        value=torch.from_numpy(columns[2]),
        sizes=torch.tensor([sample["size"] for sample in samples]),
        keys=[sample["key"] for sample in samples],
        positions=[sample["position"] for sample in samples],
        epochs=[sample["epoch"] for sample in samples],
        damaged=[row for sample in samples for row in sample.get("damaged", ())],
    )
