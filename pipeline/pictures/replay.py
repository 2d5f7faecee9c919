"""The batches of a training step, rebuilt from the position in the order, and their pictures."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.data.batch import Batch
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, train_stream
from pipeline.pictures.regions import Region
from pipeline.pictures.render import enlarge, grid, overlay, shrink
from pipeline.pictures.sheet import write_png
from shards.format.taxonomy import Taxonomy

MAX_SIDE = 448  # pixels of the longer side of a picture
SAMPLES_PER_ROW = 4


def batches_of_step(
    settings: DataSettings,
    stores: Sequence[Store],
    task: str,
    seed: int,
    position: int,
    split: BatchSplit,
) -> Iterator[Batch]:
    """Return the micro-batches that a rank has in an optimizer step.

    The tensors are those of training to the bit, for any number of loader processes in training.

    Args:
        settings: How the shard sets are read and augmented.
        stores: The training sets.
        task: "panoptic", "instance", or "semantic".
        seed: Seed of the run.
        position: Index of the first sample of the step in the order of the run.
        split: The division of the global batch at that step, and the rank.
    """
    stream = train_stream(settings, stores, task, seed, position, split)
    return islice(stream, len(split.sizes))


def pictures(batch: Batch, b: int, taxonomy: Taxonomy) -> list[np.ndarray]:
    """Draw image `b` of a batch, with its padding: the image, and the image under its truth.

    Returns:
        Two pictures, each RGB `uint8 [H, W, 3]`.
    """
    image = np.ascontiguousarray(batch.images[b].permute(1, 2, 0).numpy())
    ids = np.zeros(image.shape[:2], np.int32)
    regions = []
    targets = batch.targets
    masks = {
        n: (targets.maps[b, targets.layer[b, n]] == targets.value[b, n]).numpy()
        for n in range(targets.categories.shape[1])
        if targets.categories[b, n] >= 0
    }
    for n in sorted(masks, key=lambda n: -np.count_nonzero(masks[n])):  # small ones on top
        ids[masks[n]] = n + 1
        regions.append(Region(n + 1, int(targets.categories[b, n])))
    image, ids = shrink(image, ids, MAX_SIDE)
    return [enlarge(image), overlay(image, ids, regions, taxonomy)]


def write_sheet(path: Path, drawn: list[list[np.ndarray]]) -> None:
    """Write what `pictures` has drawn of several images as one picture."""
    write_png(path, grid(["image", "truth"], drawn, min(SAMPLES_PER_ROW, len(drawn))))
