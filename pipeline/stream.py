"""Shards to batches: a webdataset pipeline on a source that is addressed by position."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.augment import fit, large_scale_jitter
from pipeline.batch import collate, truth_of, without_empty
from pipeline.order import epoch_order, keyed_generator, micro_batch_positions
from pipeline.store import Store
from shards.errors import DataError
from shards.index import members
from shards.schema import decode

STALL_TIMEOUT_S = 120


@dataclass
class DataSettings:
    """Shard sets and what happens to a sample on its way to the model.

    `augment` is `lsj` (flip, large-scale jitter, crop) or `none` (fit the crop, no randomness).
    `keep_empty` keeps segments that the crop has cut away, as the reference does for panoptic.
    `limit` trains on the first samples only.
    """

    train: str = "???"
    val: str = "???"
    crop: int = 1024
    augment: str = "lsj"
    scale: list[float] = field(default_factory=lambda: [0.1, 2.0])
    keep_empty: bool = True
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


def read_image(encoded: bytes, name: str) -> np.ndarray:
    """Encoded image -> u8 [H,W,3] RGB, EXIF rotation applied. Raises DataError naming `name`."""
    buffer = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB) if encoded else None
    if image is None:
        raise DataError(f"{name}: the image does not decode; build the set again without it")
    return image


def decode_stage(sample: dict[str, Any], task: str, num_things: int) -> dict[str, Any]:
    """blob -> image u8 [H,W,3] and truth."""
    record = decode(members(sample.pop("blob")))
    image = read_image(record["image"], sample["key"])
    if image.shape[:2] != (record["json"]["height"], record["json"]["width"]):
        raise DataError(f"{sample['key']}: image and truth differ in size")
    return sample | {"image": image, "truth": truth_of(record, task, num_things)}


def augment_stage(sample: dict[str, Any], settings: DataSettings, seed: int) -> dict[str, Any]:
    """image u8 [3,crop,crop] and its truth, drawn from (seed, epoch, key)."""
    truth = sample["truth"]
    if settings.augment == "none":
        image, maps, size = fit(sample["image"], truth.maps, settings.crop)
    else:
        random = keyed_generator(seed, sample["epoch"], sample["key"], "augment")
        image, maps, size = large_scale_jitter(
            sample["image"], truth.maps, random, settings.crop, tuple(settings.scale)
        )
    truth = truth._replace(maps=maps)
    if not settings.keep_empty:
        truth = without_empty(truth)
    return sample | {"image": image, "truth": truth, "size": size}


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


def loader(pipeline: wds.DataPipeline, workers: int, pin: bool) -> DataLoader:
    """Run the pipeline in `workers` processes (0: in this one); batches come in order."""
    if workers == 0:
        return DataLoader(pipeline, batch_size=None, pin_memory=pin)
    return DataLoader(
        pipeline,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="forkserver",
        persistent_workers=True,
        prefetch_factor=4,
        timeout=STALL_TIMEOUT_S,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
