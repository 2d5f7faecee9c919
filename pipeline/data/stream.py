"""From shards to batches: a webdataset pipeline whose source is addressed by position."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from webdataset import filters
from webdataset.pipeline import DataPipeline

from pipeline.data.batch import Batch, collate
from pipeline.data.order import Order, SetOrder
from pipeline.data.settings import DataSettings
from pipeline.data.split import BatchSplit, batches_of_process, micro_batch_positions
from pipeline.data.stages import augment_stage, decode_stage, user_stage
from pipeline.data.store import Store
from shards.errors import DataError, UsageError
from shards.files import is_url

SUBSTITUTES = 16  # samples to try instead of a damaged one before giving up


def train_sets(settings: DataSettings) -> list[Store]:
    """Open the shard sets of `data.train`, and warn if the cache is too small for them.

    Raises:
        UsageError: A path is not a shard set, or the sets have different classes.
        DataError: A manifest or an index is damaged.
    """
    stores = [Store(location, settings.limit, settings.cache) for location in settings.train]
    for store in stores[1:]:
        if difference := stores[0].manifest.taxonomy.difference(store.manifest.taxonomy):
            raise UsageError(
                f"its classes differ from those of {stores[0].location}: {difference}",
                where=store.location,
                fix="only shard sets with the same classes can be mixed",
            )
    _warn_if_cache_is_small(stores, settings)
    return stores


def _warn_if_cache_is_small(stores: Sequence[Store], settings: DataSettings) -> None:
    """Warn if the cache cannot hold the shards of two shuffle windows, which slows a run down."""
    needed = 0
    for store in (store for store in stores if is_url(store.location)):
        largest = sorted((shard.bytes for shard in store.manifest.shards), reverse=True)
        needed += sum(largest[: 2 * settings.window])  # the current and the next window
    if needed > settings.cache.gib * 2**30:
        warnings.warn(
            f"data.cache.gib={settings.cache.gib:g}: the shards in use at one time take up to "
            f"{needed / 2**30:.3g} GiB; samples of shards that do not fit are downloaded one by "
            "one, which is slower",
            stacklevel=2,
        )


def order_of(stores: Sequence[Store], settings: DataSettings, seed: int) -> Order:
    """Return the order of a run on these shard sets.

    Raises:
        UsageError: `data.weights` does not fit the sets.
    """
    orders = [
        SetOrder(store.shard_sizes, seed, store.manifest.fingerprint, settings.window)
        for store in stores
    ]
    return Order(orders, settings.weights)


class IndexedSource(IterableDataset):
    """The decoded samples of one rank in order, without end.

    Loader process j of n yields the samples of micro-batches j, j + n, and so on. A sample that is
    damaged, or that cannot be decoded, is replaced by a substitute that does not depend on how the
    work is divided. The field "damaged" of a sample lists the damaged samples that this sample
    replaces.

    Args:
        stores: The shard sets.
        settings: How the shard sets are read.
        seed: Seed of the run.
        position: The position at which the first step begins.
        split: The division of the global batch.
        decode: Replaces the field "stored" of a sample by "image" and "truth". It raises DataError
            for a sample that cannot be decoded.

    Raises:
        DataError: A sample and all of its SUBSTITUTES substitutes are damaged.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        settings: DataSettings,
        seed: int,
        position: int,
        split: BatchSplit,
        decode: Callable[[dict[str, Any]], dict[str, Any]],
    ):
        self.stores, self.settings, self.seed = stores, settings, seed
        self.position, self.split, self.decode = position, split, decode

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = order_of(self.stores, self.settings, self.seed)
        for positions in _batches_of_this_process(self.position, self.split):
            upcoming = order.upcoming_shards(positions[0])
            for number, store in enumerate(self.stores):
                store.prefetch([shard for owner, shard in upcoming if owner == number])
            for position in positions:
                yield self._sample(order, position)

    def _sample(self, order: Order, position: int) -> dict[str, Any]:
        """Return the sample at a position, or its first undamaged substitute."""
        ref, damaged = order.at(position), []
        errors: list[DataError] = []
        for attempt in range(1, SUBSTITUTES + 2):
            store = self.stores[ref.set]
            key = store.index.key[ref.sample]
            sample = {"key": key, "position": position, "epoch": ref.epoch}
            try:
                stored = store.load(ref.sample)
                return self.decode(sample | {"stored": stored}) | {
                    "damaged": [row | {"substitute": key} for row in damaged]
                }
            except DataError as error:
                errors.append(error)
                shard = store.shard_of(ref.sample)
                row = sample | {"set": store.location, "shard": shard, "reason": str(error)}
                damaged.append(row)
                ref = order.substitute(position, attempt)
        first = errors[0].problem
        raise DataError(
            f"{first.what}, and {SUBSTITUTES} substitutes are damaged, too",
            where=first.where,
            fix=first.fix,
        ) from errors[0]


def _batches_of_this_process(position: int, split: BatchSplit) -> Iterator[range]:
    """Yield the positions of the micro-batches that this loader process, if it is one, prepares."""
    worker = get_worker_info()
    process, count = (worker.id, worker.num_workers) if worker else (0, 1)
    return batches_of_process(micro_batch_positions(position, split), process, count)


def _batched(
    samples: Iterator[dict[str, Any]], position: int, split: BatchSplit
) -> Iterator[Batch]:
    """Yield the samples of an `IndexedSource` as micro-batches."""
    for positions in _batches_of_this_process(position, split):
        yield collate(list(islice(samples, len(positions))))


def train_stream(
    settings: DataSettings,
    stores: Sequence[Store],
    task: str,
    seed: int,
    position: int,
    split: BatchSplit,
) -> DataPipeline:
    """Return the training pipeline of one rank: an iterable of `Batch` without end.

    Args:
        settings: How the shard sets are read and augmented.
        stores: The shard sets.
        task: "panoptic", "instance", or "semantic".
        seed: Seed of the run.
        position: The position at which the first step begins.
        split: The division of the global batch.
    """
    decode = partial(decode_stage, task=task, things=stores[0].manifest.taxonomy.things)
    return DataPipeline(
        IndexedSource(stores, settings, seed, position, split, decode),
        *(filters.map(partial(user_stage, name=name, seed=seed)) for name in settings.stages),
        filters.map(partial(augment_stage, settings=settings, task=task, seed=seed)),
        partial(_batched, position=position, split=split),
    )
