"""What the net saw at a step: the batches of training, drawn again from the position alone."""

from collections.abc import Iterator
from itertools import islice

import cv2
import numpy as np

from pipeline.data.batch import Batch
from pipeline.data.split import BatchSplit
from pipeline.data.stream import train_sets, train_stream
from pipeline.pictures.regions import Region
from pipeline.pictures.render import enlarge, overlay
from pipeline.settings import RunSettings
from shards.format.taxonomy import Taxonomy

SIDE = 448  # of a picture at most


def batches_of_step(settings: RunSettings, step: int, world: int, rank: int) -> Iterator[Batch]:
    """The micro-batches that rank `rank` of `world` has in optimizer step `step`, from 1 on.

    The tensors are those of training to the bit, whatever number of loader processes it had.
    """
    sizes = settings.batch
    split = BatchSplit(sizes.size, sizes.micro, world, rank)
    stream = train_stream(
        settings.data,
        train_sets(settings.data),
        settings.task,
        settings.seed,
        (step - 1) * sizes.size,
        split,
    )
    return islice(stream, split.micro_steps)


def pictures(batch: Batch, b: int, taxonomy: Taxonomy) -> list[np.ndarray]:
    """Image b of a batch, padding included, bare and under its truth: two of u8 [h, w, 3]."""
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
    factor = min(1, SIDE / max(ids.shape))
    size = tuple(round(side * factor) for side in reversed(ids.shape))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return [
        enlarge(image),
        overlay(image, ids, regions, taxonomy),
    ]
