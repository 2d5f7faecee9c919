"""Verified reads of single samples from a shard set in a folder or at a URL."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from pipeline.data.cache import CacheSettings
from pipeline.data.fetch import FetchedShards, fetch_set
from shards.errors import DataError
from shards.files import is_url, sha256
from shards.format.index import SAMPLES, SampleIndex
from shards.format.manifest import Manifest, Shard
from shards.format.read import read_sample
from shards.format.schema import Sample
from shards.remote import RemoteFolder

OPEN_SHARDS = 64  # files that are kept open at one time


class Store:
    """A shard set: its manifest, its index, and verified reads of single samples.

    A store can be pickled; the copy opens the set again.

    Args:
        location: A folder or a URL.
        limit: Number of samples to keep from the start of the set; None keeps all.
        cache: The cache of this node for the shards of a URL.

    Raises:
        UsageError: There is no shard set at `location`, or it cannot be reached.
        DataError: The manifest or the index is damaged.
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
        self.manifest = Manifest.load(self.folder)
        index = self.folder / SAMPLES
        if not index.is_file() or sha256(index) != self.manifest.index.sha256:
            raise DataError(
                "the file is missing or its hash differs from the manifest",
                where=f"{location}/{SAMPLES}",
                fix="build the set again",
            )
        self.index = SampleIndex.load(self.folder, self.manifest)
        self.count = min(len(self.index), limit or len(self.index))
        self._shards: FetchedShards | LocalShards = (
            FetchedShards(remote, self.manifest.shards, self.cache)
            if remote
            else LocalShards(self.folder, self.manifest.shards)
        )

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        state = {"location": self.location, "limit": self.limit, "cache": self.cache}
        return state | {"fingerprint": self.manifest.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fingerprint = state.pop("fingerprint")
        self.__init__(**state)
        if self.manifest.fingerprint != fingerprint:
            raise DataError(
                "the shard set was rebuilt while in use",
                where=self.location,
                fix="start the command again",
            )

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """The number of samples in each shard, in the order of the manifest."""
        counts = np.bincount(self.index.shard[: self.count], minlength=len(self.manifest.shards))
        return tuple(counts.tolist())

    def shard_of(self, sample: int) -> str:
        """Return the name of the shard that contains a sample."""
        return self.manifest.shards[self.index.shard[sample]].name

    def read(self, sample: int) -> bytes:
        """Return the bytes of one sample with its tar headers.

        Raises:
            DataError: The bytes are missing, or their hash differs from the index.
            Failed: A server does not answer.
        """
        index = self.index
        shard, offset = int(index.shard[sample]), int(index.offset[sample])
        for blob in self._shards.read(shard, offset, int(index.length[sample])):
            if xxhash.xxh3_64_intdigest(blob) == index.xxh3[sample]:
                return blob
        raise DataError(
            f"sample {index.key[sample]} is damaged: its hash differs from the index",
            where=f"{self.location}/{self.shard_of(sample)}",
            fix="build the set again",
        )

    def load(self, sample: int) -> Sample:
        """Return one sample with its image still encoded.

        Raises:
            DataError: The bytes are missing, or their hash differs from the index.
            Failed: A server does not answer.
        """
        blob = self.read(sample)
        return read_sample(self.manifest, self.index.key[sample], blob, hash_verified=True)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Start to download the shards needed next, the most urgent first; a folder needs none."""
        self._shards.prefetch(shards)

    def check_shards(self) -> None:
        """Check that every shard of a folder exists in the listed size; a URL is not checked.

        Raises:
            DataError: A shard is missing or has another size.
        """
        for shard in () if is_url(self.location) else self.manifest.shards:
            path = self.folder / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                what = (
                    "the shard is missing"
                    if size is None
                    else f"the shard has {size} bytes instead of {shard.bytes}"
                )
                raise DataError(what, where=path, fix="build the set again")


class LocalShards:
    """Shards in a folder."""

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self.folder, self.shards = folder, shards
        self._open = lru_cache(OPEN_SHARDS)(self._open_shard)

    def read(self, shard: int, offset: int, length: int) -> Iterator[bytes]:
        """Yield a byte range once, because a local shard has no second copy.

        Raises:
            DataError: The file cannot be read.
        """
        try:
            descriptor = self._open(shard).fileno()
            # A wrong index must not reserve memory for bytes that the file does not have.
            yield os.pread(descriptor, min(length, os.fstat(descriptor).st_size), offset)
        except OSError as error:
            path = self.folder / self.shards[shard].name
            what = error.strerror or str(error)
            raise DataError(what, where=path, fix="build the set again") from error

    def prefetch(self, shards: Sequence[int]) -> None:
        """Do nothing, because the shards are local."""

    def _open_shard(self, shard: int) -> BinaryIO:
        return (self.folder / self.shards[shard].name).open("rb")
