"""Where the bytes of samples come from: one shard set, in a folder or below a URL."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from pipeline.data.cache import CacheSettings
from pipeline.data.fetch import FetchedShards, fetch_set
from shards.errors import DataError, UsageError
from shards.files import is_url, sha256
from shards.format.index import SAMPLES, SampleIndex, unpack
from shards.format.manifest import Manifest, Shard
from shards.format.schema import Sample, decode
from shards.remote import RemoteFolder

OPEN_SHARDS = 64


class Store:
    """A shard set: its manifest, its index, and verified reads of single samples.

    `location` is a folder, or a URL whose shards go through the node's `cache`. `limit` keeps the
    first samples only. Raises UsageError if there is no shard set, DataError if its manifest or
    index is not as built.
    """

    def __init__(
        self,
        location: Path | str,
        limit: int | None = None,
        cache: CacheSettings | None = None,
    ):
        self.location, self.limit, self.cache = str(location), limit, cache or CacheSettings()
        remote = RemoteFolder(self.location) if is_url(self.location) else None
        self.folder = fetch_set(remote, self.cache) if remote else Path(location)
        if not (self.folder / "manifest.json").is_file():
            raise UsageError(
                f"{location} is not a shard set (no manifest.json); "
                "make one: ./launch.sh build coco --root RAW --out SHARDS"
            )
        self.manifest = Manifest.load(self.folder)
        _check_hashes(self.folder, self.manifest.shards)
        index = self.folder / SAMPLES
        if not index.is_file() or sha256(index) != self.manifest.index.sha256:
            raise DataError(
                f"{location}/{SAMPLES} is damaged or missing (the manifest has its hash); "
                "build the set again"
            )
        self.index = SampleIndex.load(self.folder)
        self.count = min(len(self.index), limit or len(self.index))
        self._shards = (
            FetchedShards(remote, self.manifest.shards, self.cache)
            if remote
            else LocalShards(self.folder, self.manifest.shards)
        )

    def __len__(self) -> int:
        return self.count

    def __getstate__(self):
        state = {"location": self.location, "limit": self.limit, "cache": self.cache}
        return state | {"fingerprint": self.manifest.fingerprint}  # descriptors do not travel

    def __setstate__(self, state):
        fingerprint = state.pop("fingerprint")
        self.__init__(**state)
        if self.manifest.fingerprint != fingerprint:
            raise DataError(f"{self.location} was built anew while in use; start the command again")

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples in each shard, in the order of the index."""
        counts = np.bincount(self.index.shard[: self.count], minlength=len(self.manifest.shards))
        return tuple(counts.tolist())

    def shard_of(self, sample: int) -> str:
        """The name of the shard that holds a sample."""
        return self.manifest.shards[self.index.shard[sample]].name

    def read(self, sample: int) -> bytes:
        """The bytes of one sample, headers included. Raises DataError if they are not as built,
        Failed if a server does not give them."""
        row = self.index
        place = int(row.shard[sample]), int(row.offset[sample]), int(row.length[sample])
        for blob in self._shards.read(*place):
            if xxhash.xxh3_64_intdigest(blob) == row.xxh3[sample]:
                return blob
        raise DataError(
            f"{self.location}/{self.shard_of(sample)}: sample {row.key[sample]} is damaged "
            "(its hash differs from the index); build the set again"
        )

    def load(self, sample: int) -> Sample:
        """One sample, its image still encoded. Raises DataError where it is damaged, and as `read`
        does."""
        blob = self.read(sample)
        if self.manifest.foreign:
            from shards.format import foreign  # 20 MiB of libraries that other sets do not need

            return foreign.load(blob, self.manifest)
        return decode(unpack(blob))

    def prefetch(self, shards: Sequence[int]) -> None:
        """Say which shards are needed next, soonest first."""
        self._shards.prefetch(shards)

    def check_shards(self) -> None:
        """Raises DataError for a shard of the folder that is missing or of another size."""
        for shard in () if is_url(self.location) else self.manifest.shards:
            path = self.folder / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                what = "is missing" if size is None else f"has {size} bytes, not {shard.bytes}"
                raise DataError(f"{path} {what}; build the set again")


class LocalShards:
    """Shards in a folder."""

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self.folder, self.shards = folder, shards
        self._open = lru_cache(OPEN_SHARDS)(self._open_shard)

    def read(self, shard: int, offset: int, length: int) -> Iterator[bytes]:
        """A part of a shard, as often as it may be worth reading. Raises DataError."""
        try:
            yield os.pread(self._open(shard).fileno(), length, offset)
        except OSError as error:
            path = self.folder / self.shards[shard].name
            raise DataError(f"{path}: {error.strerror}; build the set again") from error

    def prefetch(self, shards: Sequence[int]) -> None:
        """Nothing to do: they are here."""

    def _open_shard(self, shard: int) -> BinaryIO:
        return (self.folder / self.shards[shard].name).open("rb")


def _check_hashes(folder: Path, shards: Sequence[Shard]) -> None:
    """Raises DataError for a hash that, as the name of a file, could leave the cache's folder."""
    for shard in shards:
        if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
            raise DataError(f"{folder}: the manifest lists {shard.name!r}, not a plain tar file")
