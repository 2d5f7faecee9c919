"""Shards to batches: a webdataset pipeline on a source that is addressed by position."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.data.augment.recipes import AugmentSettings
from pipeline.data.batch import collate
from pipeline.data.cache import CacheSettings
from pipeline.data.order import WINDOW, Order, SetOrder
from pipeline.data.split import BatchSplit, batches_of_process, micro_batch_positions
from pipeline.data.stages import augment_stage, decode_stage, user_stage
from pipeline.data.store import Store
from shards.errors import DataError, UsageError
from shards.files import is_url

SUBSTITUTES = 16  # tried before a damaged sample is a failure


@dataclass
class DataSettings(AugmentSettings):
    """Shard sets and how they are read.

    `train` is one shard set or a list of them, of one taxonomy; then `weights` says how often each
    has its turn (none: every sample as often as any other). The samples of `window` shards are
    shuffled together. `limit` trains on the first samples of each set only. A set may be a URL;
    its shards go through `cache`. A run with more than `max_damaged` damaged samples stops.

    `stages` are functions of the user's, `package.module:function`, that every sample goes through
    between decoding and augmentation (see `pipeline.data.stages.user_stage`). `loader_workers`
    processes a rank prepare batches; a rank that gets none for `stall_timeout_s` fails.
    """

    train: Any = "???"
    val: str = "???"
    weights: list[float] = field(default_factory=list)
    window: int = WINDOW
    limit: int | None = None
    max_damaged: int = 100
    cache: CacheSettings = field(default_factory=CacheSettings)
    stages: list[str] = field(default_factory=list)
    loader_workers: int = 4
    stall_timeout_s: int = 120


def train_sets(settings: DataSettings) -> list[Store]:
    """The shard sets of `data.train`. Raises UsageError where there is none, or other classes."""
    sets = [settings.train] if isinstance(settings.train, str) else settings.train
    stores = [Store(location, settings.limit, settings.cache) for location in sets]
    for store in stores[1:]:
        if store.manifest.taxonomy != stores[0].manifest.taxonomy:
            raise UsageError(
                f"{stores[0].location} and {store.location}: other classes; "
                "only sets of one label space can be trained on together"
            )
    _warn_of_a_small_cache(stores, settings)
    return stores


def _warn_of_a_small_cache(stores: Sequence[Store], settings: DataSettings) -> None:
    """Say before it starts that a run will be slow: with room, no sample is fetched by itself."""
    needed = 0
    for store in (store for store in stores if is_url(store.location)):
        largest = sorted((shard.bytes for shard in store.manifest.shards), reverse=True)
        needed += sum(largest[: 2 * settings.window])  # this window, and the next one ahead of it
    if needed > settings.cache.gib * 2**30:
        warnings.warn(
            f"data.cache.gib={settings.cache.gib:g}: the shards in use at one time take up to "
            f"{needed / 2**30:.3g} GiB; samples of those without room are fetched one by one",
            stacklevel=2,
        )


def order_of(stores: Sequence[Store], settings: DataSettings, seed: int) -> Order:
    """The order of a run on these shard sets."""
    return Order(
        [SetOrder(s.shard_sizes, seed, s.manifest.fingerprint, settings.window) for s in stores],
        settings.weights,
    )


class IndexedSource(IterableDataset):
    """Decoded samples of this rank in order, from `position` on, for ever.

    Loader process j of n takes micro-batches j, j+n, ...: torch's loader deals them out in turn.
    A sample that is damaged, or that `decode` refuses, is replaced by another one, the same on
    every division of the work; `damaged` says of what. Raises DataError when all of its
    SUBSTITUTES are damaged too.
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
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        order = order_of(self.stores, self.settings, self.seed)
        batches = micro_batch_positions(self.position, self.split)
        for positions in batches_of_process(batches, turn, turns):
            upcoming = order.upcoming_shards(positions[0])
            for number, store in enumerate(self.stores):
                store.prefetch([shard for owner, shard in upcoming if owner == number])
            for position in positions:
                yield self._sample(order, position)

    def _sample(self, order: Order, position: int) -> dict[str, Any]:
        """The sample at a position, or its first substitute that is whole."""
        place, damaged = order.at(position), []
        for attempt in range(1, SUBSTITUTES + 2):
            store = self.stores[place.set]
            key = store.index.key[place.sample]
            sample = {"key": key, "position": position, "epoch": place.epoch}
            try:
                stored = store.load(place.sample)
                return self.decode(sample | {"stored": stored}) | {
                    "damaged": [row | {"substitute": key} for row in damaged]
                }
            except DataError as error:
                shard = store.shard_of(place.sample)
                row = sample | {"set": store.location, "shard": shard, "reason": str(error)}
                damaged.append(row)
                place = order.substitute(position, attempt)
        raise DataError(f"{damaged[0]['reason']}; so are {SUBSTITUTES} others in its place")


def train_stream(
    settings: DataSettings,
    stores: Store | Sequence[Store],
    task: str,
    seed: int,
    position: int,
    split: BatchSplit,
) -> wds.DataPipeline:
    """The training pipeline of one rank from `position` on: an iterable of `Batch`."""
    stores = [stores] if isinstance(stores, Store) else stores
    num_things = sum(stores[0].manifest.taxonomy.things)
    decode = partial(decode_stage, task=task, num_things=num_things)
    return wds.DataPipeline(
        IndexedSource(stores, settings, seed, position, split, decode),
        *(wds.map(partial(user_stage, name=name, seed=seed)) for name in settings.stages),
        wds.map(partial(augment_stage, settings=settings, task=task, seed=seed)),
        wds.batched(split.micro_batch, collation_fn=collate, partial=False),
    )
