"""A shard set below a URL: its index at once, its shards ahead of their use."""

import os
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from pipeline.data.cache import CacheSettings, ShardCache
from shards.errors import DataError, Failed, UsageError
from shards.files import whole_file
from shards.format.index import SAMPLES
from shards.format.manifest import MANIFEST, File, Manifest, Shard
from shards.remote import RemoteFolder

LOOK_AGAIN_S = 5  # for shards that could not be had: no answer, or another process was at it


def fetch_set(remote: RemoteFolder, settings: CacheSettings) -> Path:
    """A folder of this node with manifest and index of a set.

    It is named by the manifest's bytes, so a set that was built anew has another one. Raises
    UsageError if there is no set or no way to it, DataError if it is not as built.
    """
    try:
        manifest = remote.read(MANIFEST)
        folder = Path(settings.folder).expanduser() / "sets" / sha256(manifest).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / MANIFEST) as file:
            file.write(manifest)
        index = Manifest.load(folder).index
        if not (folder / SAMPLES).exists() or File.of(folder / SAMPLES) != index:
            with whole_file(folder / SAMPLES) as file:
                file.writelines(remote.pieces(SAMPLES, index.bytes))
    except FileNotFoundError as error:
        raise UsageError(
            f"{remote.url} is not a shard set ({error} is missing); upload all files of one split"
        ) from error
    except Failed as error:
        problem = error.problem
        raise UsageError(problem.what, where=problem.where, fix=problem.fix) from error
    except OSError as error:
        raise UsageError(str(error)) from error
    except DataError as error:
        raise DataError(str(error).replace(str(folder), remote.url)) from error
    return folder


class FetchedShards:
    """Shards below a URL: whole ones in the cache, parts straight from the server until then.

    A thread fetches whole shards in the order of `prefetch`; the threads of a node's processes
    share the work through the cache's locks. A shard whose bytes are not its own is not kept; its
    samples are read, and judged, one by one.
    """

    def __init__(self, remote: RemoteFolder, shards: Sequence[Shard], settings: CacheSettings):
        self.remote, self.shards, self.cache = remote, shards, ShardCache(settings)
        self._wanted: Sequence[int] = ()
        self._refused: set[int] = set()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def read(self, shard: int, offset: int, length: int) -> Iterator[bytes]:
        """A part of a shard by every way there is, the cheapest first. Raises DataError if the
        shard is missing, Failed if the server does not give it, UsageError if it gives
        whole files only and the cache is too small for one."""
        entry = self.shards[shard]
        if not self.remote.ranges and shard not in self._refused:
            self._take_whole(shard)
        if file := self.cache.open(entry):
            with file:
                yield os.pread(file.fileno(), length, offset)
            self.cache.drop(entry)  # that was damaged
        name = entry.name
        try:
            yield self.remote.read_range(name, offset, length)
        except FileNotFoundError as error:
            raise DataError(f"{self.remote.url}/{name}: missing; upload the set again") from error

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch these, in this order, in the background; they do not make room for one another."""
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
            there, wanted = True, self._wanted
            keep = {self.shards[shard].sha256 for shard in wanted}
            for shard in wanted:
                if self._changed.is_set():
                    break
                if shard not in self._refused:
                    there &= self._fill(shard, keep, wait=False)
            self._changed.wait(None if there else LOOK_AGAIN_S)

    def _take_whole(self, shard: int) -> None:
        """Have a shard in the cache whose server gives no parts, whatever else has to leave it."""
        entry, budget = self.shards[shard], self.cache.budget
        if entry.bytes > budget:
            raise UsageError(
                f"{self.remote.url} gives whole files only, and data.cache.gib={budget / 2**30:g} "
                f"has no room for {entry.name} ({entry.bytes / 2**30:.3g} GiB); raise it"
            )
        self._fill(shard, keep=(), wait=True)

    def _fill(self, shard: int, keep: Collection[str], wait: bool) -> bool:
        """Whether the shard is in the cache now. What goes wrong here is told by `read`, if it
        still does when a sample is needed."""
        entry = self.shards[shard]
        try:
            pieces = self.remote.pieces(entry.name, entry.bytes)
            return self.cache.fill(entry, pieces, keep, wait)
        except (OSError, Failed):
            return False
        except DataError as error:
            self._refused.add(shard)
            warnings.warn(f"{self.remote.url}: {error}; reading it by sample", stacklevel=2)
            return False
