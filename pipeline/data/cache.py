"""A cache of whole shards on the disk of this node, shared by all processes of the node."""

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pipeline.data.settings import CacheSettings
from shards.errors import DataError, UsageError
from shards.files import expanded, sync
from shards.format.manifest import Shard
from shards.locks import file_lock


class _CachedFile(NamedTuple):
    """A file of the cache; files sort by the time of their last use."""

    used_ns: int
    bytes: int
    path: Path


class ShardCache:
    """A folder of shards that are named by the sha256 of their bytes.

    A file gets its final name only after its hash was checked. During the download the file has the
    suffix `.part`, is allocated in full so that it counts against the budget, and belongs to the
    process that holds its lock. If that process is killed, the next process that stores a shard
    removes the `.part` file.

    Raises:
        UsageError: The folder cannot be created.
    """

    def __init__(self, settings: CacheSettings):
        self.folder = expanded(settings.folder)
        self.budget = int(settings.gib * 2**30)
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the folder cannot be used ({error.strerror})",
                where=f"data.cache.folder={self.folder}",
                fix="give a folder of your own",
            ) from error

    def open(self, shard: Shard) -> BinaryIO | None:
        """Open a shard and mark it as just used. Return None if it is not in the cache."""
        try:
            file = self._path(shard).open("rb")
        except (FileNotFoundError, PermissionError):
            return None
        with contextlib.suppress(OSError):  # the file may belong to another user
            os.utime(file.fileno())
        return file

    def drop(self, shard: Shard) -> None:
        """Remove a shard, unless it belongs to another user."""
        with contextlib.suppress(OSError):
            self._path(shard).unlink()

    def fill(
        self, shard: Shard, pieces: Iterable[bytes], keep: Collection[str], wait: bool = False
    ) -> bool:
        """Store a shard, and evict the least recently used ones if that is necessary.

        Args:
            shard: The shard.
            pieces: Its bytes. They are not read if the shard is in the cache already.
            keep: The sha256 of shards that must not be evicted.
            wait: Whether to wait if another process is storing the same shard.

        Returns:
            Whether the shard is in the cache now: False if there is no space for the shard, or if
            another process is storing it and `wait` is false.

        Raises:
            DataError: The bytes differ from the hash in the manifest.
            Exception: Whatever `pieces` raises.
        """
        path = self._path(shard)
        with self._lock(shard.sha256, wait) as held:
            if not held:
                return False
            if path.exists():
                return True
            part = path.with_suffix(".part")
            try:
                return self._reserve(part, shard.bytes, keep) and self._write(part, shard, pieces)
            finally:
                part.unlink(missing_ok=True)

    def _write(self, part: Path, shard: Shard, pieces: Iterable[bytes]) -> bool:
        digest, size = hashlib.sha256(), 0
        with part.open("r+b") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        sync(part)
        if (size, digest.hexdigest()) != (shard.bytes, shard.sha256):
            raise DataError(
                "the bytes differ from the sha256 in the manifest",
                where=shard.name,
                fix="upload the shard again",
            )
        part.replace(self._path(shard))
        return True

    def _reserve(self, part: Path, size: int, keep: Collection[str]) -> bool:
        """Evict shards until `size` bytes fit into the budget, and allocate `part` with that size.

        The file is allocated before the download, so that the budget includes the downloads of all
        processes. Return False if there is no space.
        """
        with self._lock("budget", wait=True):
            self._remove_abandoned(except_for=part)
            files = [file for file in self._files() if file.path != part]
            free = self.budget - sum(file.bytes for file in files)
            spare = [f for f in files if f.path.suffix == ".tar" and f.path.stem not in keep]
            if free + sum(file.bytes for file in spare) < size:
                return False
            for old in sorted(spare):
                if free < size:
                    old.path.unlink(missing_ok=True)
                    free += old.bytes
            with part.open("wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError:  # the disk has less space than the budget
                    return False
            return True

    def _remove_abandoned(self, except_for: Path) -> None:
        """Remove the `.part` files of killed processes, whose locks are free."""
        for part in self.folder.glob("*.part"):
            if part != except_for:
                with self._lock(part.stem, wait=False) as is_abandoned:
                    if is_abandoned:
                        part.unlink(missing_ok=True)

    def _files(self) -> Iterator[_CachedFile]:
        """Yield the file of every shard in the folder, including shards during their download."""
        for entry in list(os.scandir(self.folder)):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith((".tar", ".part")):
                    stat = entry.stat()
                    yield _CachedFile(stat.st_mtime_ns, stat.st_size, Path(entry.path))

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _lock(self, name: str, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """Hold a lock of this cache among all processes of the node; see `file_lock`."""
        return file_lock(self.folder / "locks" / name, wait=wait)
