"""Raw samples per second against stock webdataset, the time to draw their order, and decoding.

M2F_COCO names a COCO folder whose photographs are repeated; the default is `overfit.SAMPLE`.
"""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from webdataset import filters
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

from jobs.bench import alternate, row, stream_decode
from pipeline.data.order import Order, SetOrder
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, order_of, train_stream
from shards.build.build import build
from shards.files import sha256
from shards.format.index import SAMPLES as INDEX
from shards.format.index import save_offsets, save_rows, scan
from shards.format.manifest import File, Shard
from shards.format.tar import members, unpack

SAMPLES, SHARDS = 1500, 16
SEED, BATCH = 1, 16
FAR = 10_000_000  # a position to resume from
SHARD_SAMPLES = 800  # COCO samples in a shard of 128 MiB
SIZES = {"120k": 120_000, "20m": 20_000_000}
SETTINGS = DataSettings()


def rows() -> list[dict]:
    """Measure raw rates from the page cache, order and first-batch times, and `stream_decode`."""
    with tempfile.TemporaryDirectory() as folder:
        store = repeated(Path(folder))
        tars = [str(store.folder / shard.name) for shard in store.manifest.shards]
        assert dict(ours(store)) == dict(stock(tars))
        raw = alternate({
            "ours": lambda: sum(1 for _ in ours(store)),
            "webdataset": lambda: sum(1 for _ in stock(tars)),
        })  # fmt: skip
        first = alternate({"from 0": lambda: batch(store, 0), "far": lambda: batch(store, FAR)})
    drawn = alternate({size: lambda n=n: order(n).sets[0].epoch(0) for size, n in SIZES.items()})
    start = alternate({
        "from 0": lambda: draw_batch(order(SIZES["20m"]), 0),
        "far": lambda: draw_batch(order(SIZES["20m"]), FAR),
    })  # fmt: skip
    return [
        row("stream.raw_rate", "samples/s", len(store) / raw["ours"], better="higher",
            target=">= 6x", peer=len(store) / raw["webdataset"], peer_name="webdataset"),
        *(row(f"stream.order_epoch_time.{size}", "s", drawn[size], better="lower")
          for size in SIZES),
        row("stream.order_start_time.20m_at_10m", "s", start["far"], better="lower",
            target="<= 0.2 s more", peer=start["from 0"], peer_name="at position 0"),
        row("stream.first_batch_time.at_10m", "s", first["far"], better="lower",
            target="<= 0.2 s more", peer=first["from 0"], peer_name="at position 0"),
        *stream_decode.rows(),
    ]  # fmt: skip


def ours(store: Store) -> Iterator[tuple[str, Mapping[str, bytes | memoryview]]]:
    """Yield the key and the members of every sample of an epoch, shuffled and verified."""
    order = order_of([store], SETTINGS, SEED)
    for position in range(len(store)):
        sample = order.at(position).sample
        yield store.index.key[sample], unpack(store.read(sample))


def stock(tars: list[str]) -> Iterator[tuple[str, Mapping[str, bytes | memoryview]]]:
    """Yield the same samples with stock webdataset, in another order and without verification."""
    dataset = WebDataset(tars, shardshuffle=len(tars), seed=SEED)
    for sample in dataset.compose(filters.shuffle(1000)):
        yield sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}


def batch(store: Store, position: int) -> None:
    """Prepare the first batch of a stream that starts at `position`."""
    split = BatchSplit(BATCH, BATCH)
    next(iter(train_stream(SETTINGS, [store], "panoptic", SEED, position, split)))


def order(samples: int) -> Order:
    """Return the order of a set of `samples` samples."""
    return Order([SetOrder((SHARD_SAMPLES,) * (samples // SHARD_SAMPLES), SEED, "bench")])


def draw_batch(order: Order, position: int) -> None:
    """Look up the samples of one batch."""
    for index in range(position, position + BATCH):
        order.at(index)


def repeated(folder: Path) -> Store:
    """Build one shard set that contains the photographs many times."""
    raw = stream_decode.coco()
    build("coco", raw, folder / "once", splits=["train"], shards=1, report=lambda _: None)
    once = Store(folder / "once" / "train")
    samples = [members(once.read(number)) for number in range(len(once))]
    shards, found = [], []
    for number in range(SHARDS):
        tar = folder / f"{number:06d}.tar"
        with TarWriter(str(tar), encoder=False, mtime=0) as writer:
            for copy in range(number, SAMPLES // len(once), SHARDS):
                for key, sample in zip(once.index.key, samples, strict=True):
                    writer.write({"__key__": f"{copy:04d}-{key}", **sample})
        scanned = scan(tar)
        save_offsets(tar, scanned)
        found.append(scanned)
        shards.append(Shard(tar.name, tar.stat().st_size, sha256(tar), len(scanned)))
    save_rows(folder, found)
    index = File.of(folder / INDEX)
    replace(once.manifest, index=index, shards=tuple(shards)).save(folder)
    return Store(folder)
