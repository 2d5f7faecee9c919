"""Shards to batches: a webdataset pipeline on a source that is addressed by position."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.augment import AugmentSettings
from pipeline.batch import collate
from pipeline.order import epoch_order, micro_batch_positions
from pipeline.stages import augment_stage, decode_stage
from pipeline.store import Store


@dataclass
class DataSettings(AugmentSettings):
    """Shard sets and how they are read. `limit` trains on the first samples only."""

    train: str = "???"
    val: str = "???"
    limit: int | None = None
    loader_workers: int = 4


@dataclass(frozen=True)
class Share:
    """This rank's part of every global batch."""

    global_batch: int
    micro_batch: int
    world_size: int = 1
    rank: int = 0


class IndexedSource(IterableDataset):
    """Raw samples of this rank in order, from `position` on, for ever.

    Loader process j of n takes micro-batches j, j+n, ...: torch's loader deals them out in turn.
    """

    def __init__(self, store: Store, seed: int, position: int, share: Share):
        self.store, self.seed, self.position, self.share = store, seed, position, share

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        sizes, fingerprint = self.store.shard_sizes, self.store.manifest.fingerprint
        batches = micro_batch_positions(
            self.position,
            global_batch=self.share.global_batch,
            micro_batch=self.share.micro_batch,
            world_size=self.share.world_size,
            rank=self.share.rank,
        )
        for number, positions in enumerate(batches):
            if number % turns != turn:
                continue
            for position in positions:
                epoch, place = divmod(position, len(self.store))
                sample = int(epoch_order(sizes, self.seed, fingerprint, epoch)[place])
                yield {
                    "key": self.store.index.key[sample],
                    "position": position,
                    "epoch": epoch,
                    "blob": self.store.read(sample),
                }


def train_stream(
    settings: DataSettings, store: Store, task: str, seed: int, position: int, share: Share
) -> wds.DataPipeline:
    """The training pipeline of one rank from `position` on: an iterable of `Batch`."""
    return wds.DataPipeline(
        IndexedSource(store, seed, position, share),
        wds.map(partial(
            decode_stage, task=task, num_things=sum(store.manifest.taxonomy.things)
        )),
        wds.map(partial(augment_stage, settings=settings, seed=seed)),
        wds.batched(share.micro_batch, collation_fn=collate, partial=False),
    )  # fmt: skip
