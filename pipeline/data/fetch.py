"""Download a shard set from a URL: the index at once, and the shards ahead of their use."""

import os
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from pipeline.data.cache import CacheSettings, ShardCache
from shards.errors import DataError, Failed, UsageError
from shards.files import disk_errors, expanded, whole_file
from shards.format.index import SAMPLES
from shards.format.manifest import MANIFEST, File, Manifest, Shard
from shards.remote import RemoteFolder

RETRY_S = 5  # wait after a failed download, or while another process downloads the shard


def fetch_set(remote: RemoteFolder, settings: CacheSettings) -> Path:
    """Download the manifest and the index of a shard set, and return their folder on this node.

    The folder is named by the hash of the manifest, so a set that was rebuilt has another folder.

    Raises:
        UsageError: There is no shard set, or the server does not answer.
        DataError: The manifest is damaged.
        Failed: The disk is full.
    """
    with disk_errors(Path(settings.folder)):
        return _download_index(remote, settings)


def _download_index(remote: RemoteFolder, settings: CacheSettings) -> Path:
    try:
        manifest = remote.read(MANIFEST)
        folder = expanded(settings.folder) / "sets" / sha256(manifest).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        if not _has(folder / MANIFEST, manifest):  # the folder may belong to another user
            with whole_file(folder / MANIFEST) as file:
                file.write(manifest)
        index = Manifest.load(folder).index
        if not (folder / SAMPLES).exists() or File.of(folder / SAMPLES) != index:
            with whole_file(folder / SAMPLES) as file:
                file.writelines(remote.pieces(SAMPLES, index.bytes))
    except FileNotFoundError as error:
        raise UsageError(
            f"not a shard set ({error} is missing)",
            where=remote.url,
            fix="upload all files of one split",
        ) from error
    except Failed as error:
        problem = error.problem
        raise UsageError(problem.what, where=problem.where, fix=problem.fix) from error
    except DataError as error:
        raise error.at(f"{remote.url}/{MANIFEST}") from error
    return folder


def _has(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


class FetchedShards:
    """Shards at a URL, read from the cache, or from the server until they are in the cache.

    A thread downloads whole shards in the order of `prefetch`. The threads of all processes of a
    node share the work through the locks of the cache. If the hash of a whole shard is wrong, the
    shard is not cached, and its samples are downloaded and verified one by one.
    """

    def __init__(self, remote: RemoteFolder, shards: Sequence[Shard], settings: CacheSettings):
        self.remote, self.shards, self.cache = remote, shards, ShardCache(settings)
        self._wanted: Sequence[int] = ()
        self._damaged: set[int] = set()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self, shard: int, offset: int, length: int) -> Iterator[bytes]:
        """Yield the copy of a byte range in the cache, if there is one, then that on the server.

        A caller that asks for the second copy has found the first one damaged, so the shard is
        removed from the cache.

        Raises:
            DataError: The shard is missing.
            Failed: The server does not answer.
            UsageError: The server ignores byte ranges, and the shard is larger than the cache.
        """
        entry = self.shards[shard]
        if not self.remote.ranges and shard not in self._damaged:
            self._cache_whole(shard)
        if file := self.cache.open(entry):
            with file:
                yield os.pread(file.fileno(), length, offset)
            self.cache.drop(entry)  # the caller found the copy damaged
        name = entry.name
        try:
            yield self.remote.read_range(name, offset, length)
        except FileNotFoundError as error:
            raise DataError(
                "the shard is missing",
                where=f"{self.remote.url}/{name}",
                fix="upload the set again",
            ) from error

    def prefetch(self, shards: Sequence[int]) -> None:
        """Download shards in the background, in this order. They do not evict one another."""
        if shards == self._wanted:
            return
        self._wanted = shards
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch_ahead, daemon=True)
            self._thread.start()

    def _fetch_ahead(self) -> None:
        while True:
            self._changed.clear()
            complete, wanted = True, self._wanted
            keep = {self.shards[shard].sha256 for shard in wanted}
            for shard in wanted:
                if self._changed.is_set():
                    break
                if shard not in self._damaged:
                    complete &= self._fill(shard, keep, wait=False)
            self._changed.wait(None if complete else RETRY_S)

    def _cache_whole(self, shard: int) -> None:
        """Download a whole shard into the cache, and evict others if necessary.

        Raises:
            UsageError: The shard is larger than the cache.
        """
        entry, budget = self.shards[shard], self.cache.budget
        if entry.bytes > budget:
            raise UsageError(
                f"the server ignores byte ranges, and data.cache.gib={budget / 2**30:g} is less "
                f"than the {entry.bytes / 2**30:.3g} GiB of this shard",
                where=f"{self.remote.url}/{entry.name}",
                fix="raise data.cache.gib",
            )
        self._fill(shard, keep=(), wait=True)

    def _fill(self, shard: int, keep: Collection[str], wait: bool) -> bool:
        """Download a shard and return whether it is in the cache now.

        Failures are ignored here, because `read` reports them when a sample is needed.
        """
        entry = self.shards[shard]
        try:
            pieces = self.remote.pieces(entry.name, entry.bytes)
            return self.cache.fill(entry, pieces, keep, wait)
        except PermissionError as error:
            text = f"data.cache.folder is not yours to write ({error}): shards are not cached"
            warnings.warn(text, stacklevel=2)
            return False
        except (OSError, Failed):
            return False
        except DataError as error:
            self._damaged.add(shard)
            what = error.at(f"{self.remote.url}/{entry.name}")
            warnings.warn(f"{what} (its samples are downloaded one by one)", stacklevel=2)
            return False
