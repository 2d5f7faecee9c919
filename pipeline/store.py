"""Where the bytes of samples come from: one shard set in a local folder, read by position."""

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from shards.errors import DataError, UsageError
from shards.index import SampleIndex
from shards.manifest import Manifest

OPEN_SHARDS = 64


class Store:
    """A shard set: its manifest, its index, and verified reads of single samples.

    `limit` keeps the first samples only. Raises UsageError if `folder` is not a shard set.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder = folder
        if not (folder / "manifest.json").is_file():
            raise UsageError(
                f"{folder} is not a shard set (no manifest.json); "
                "make one: ./launch.sh build coco --root RAW --out SHARDS"
            )
        self.manifest = Manifest.load(folder)
        self.index = SampleIndex.load(folder)
        self.names = [shard.name for shard in self.manifest.shards]
        self.count = min(len(self.index), limit or len(self.index))
        self._open = lru_cache(OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return self.count

    def __getstate__(self):
        return {"folder": self.folder, "limit": self.count}  # descriptors do not travel

    def __setstate__(self, state):
        self.__init__(**state)

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples in each shard, in the order of the index."""
        counts = np.bincount(self.index.shard[: self.count], minlength=len(self.names))
        return tuple(counts.tolist())

    def read(self, sample: int) -> bytes:
        """The bytes of one sample, headers included. Raises DataError if they are not as built."""
        row = self.index
        name, length = self.names[row.shard[sample]], int(row.length[sample])
        blob = os.pread(self._open(name).fileno(), length, int(row.offset[sample]))
        if len(blob) != length or xxhash.xxh3_64_intdigest(blob) != int(row.xxh3[sample]):
            raise DataError(
                f"{self.folder / name}: sample {row.key[sample]} is damaged "
                "(its hash differs from the index); build the set again"
            )
        return blob

    def _open_shard(self, name: str):
        try:
            return (self.folder / name).open("rb")
        except OSError as error:
            raise DataError(
                f"{self.folder / name}: {error.strerror}; build the set again"
            ) from error
