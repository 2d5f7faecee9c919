"""PQ, AP, and mIoU of a model on a shard set, from one pass over its images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.network import Network
from pipeline.data.store import Store
from pipeline.distributed import from_rank_0, raise_on_all_ranks, rank_and_world
from pipeline.score.inference import Result, infer
from pipeline.score.record import Record
from pipeline.score.scores import Scores
from pipeline.settings import EvaluationSettings
from shards.format.images import image_of
from shards.format.schema import Sample

BLANK = np.zeros((32, 32, 3), np.uint8)  # the input of a rank that has no image to score


def evaluate(
    model: Network,
    store: Store,
    settings: EvaluationSettings,
    device: torch.device,
    advance: Callable[[], None] = lambda: None,
    seen: Callable[[int, np.ndarray, Sample, Result], None] | None = None,
    recorded: Callable[[Record], None] | None = None,
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
        recorded: Called on rank 0 with the counters of all images.

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
        sample, image, error = _loaded(store, min(number, count - 1))
        if error and world == 1:
            raise error
        failure = failure or error  # the other ranks still need this rank's forward
        result = infer(model, image, settings, taxonomy.things, device)
        if sample is not None and number < count and not failure:
            scores.update(result, sample, number)
            if seen is not None:
                seen(number, image, sample, result)
        advance()
    model.train(was_training)
    if world > 1:
        raise_on_all_ranks(failure)
        scores = _merged(scores, rank, world)
    data = store.manifest.fingerprint
    if recorded is not None and rank == 0:
        recorded(scores.record(data))
    return {"images": count, "data": data, **from_rank_0(lambda: scores.result(data))}


def _loaded(store: Store, number: int) -> tuple[Sample | None, np.ndarray, Exception | None]:
    """Return a sample and its image, or a blank image and why the sample cannot be used."""
    try:
        sample = store.load(number)
        return sample, image_of(sample), None
    except Exception as error:
        return None, BLANK, error


def _merged(scores: Scores, rank: int, world: int) -> Scores:
    """Return the scores of all ranks on rank 0, which alone receives the counters."""
    parts: list[Scores] | None = [scores] * world if rank == 0 else None
    dist.gather_object(scores, parts, dst=0)
    for part in (parts or [])[1:]:
        scores.merge(part)
    return scores
