"""Whole shards of a URL on this node's disk, shared by all its processes."""

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.errors import DataError
from shards.files import file_lock, sync
from shards.format.manifest import Shard


@dataclass
class CacheSettings:
    """Where each node keeps shards that come from a URL, and how many GiB of them.

    Those used longest ago make room. Samples of shards without room are read one by one, which is
    slower; from a server that gives whole files only, a shard without room is an error (exit 2).
    """

    folder: str = "~/.cache/mask2former"
    gib: float = 100.0


class ShardCache:
    """Files named by the sha256 of their bytes, so a name says that its content was checked.

    A file being fetched is `.part`, takes its whole room from the start and belongs to whoever
    holds its lock: a process that is killed leaves a `.part` that the next one removes.
    """

    def __init__(self, settings: CacheSettings):
        self.folder = Path(settings.folder).expanduser()
        self.budget = int(settings.gib * 2**30)
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)

    def open(self, shard: Shard) -> BinaryIO | None:
        """The shard if it is there; it counts as used now."""
        try:
            file = self._path(shard).open("rb")
        except FileNotFoundError:
            return None
        os.utime(file.fileno())
        return file

    def has(self, shard: Shard) -> bool:
        """Whether the shard is there."""
        return self._path(shard).exists()

    def drop(self, shard: Shard) -> None:
        """Forget a shard."""
        self._path(shard).unlink(missing_ok=True)

    def fill(
        self, shard: Shard, pieces: Iterable[bytes], keep: Collection[str], wait: bool = False
    ) -> bool:
        """Take in a shard; False if there is no room, or (without `wait`) if another process is
        at it. Shards with a sha256 in `keep` do not make room for it.

        Raises DataError if the bytes are not the shard's; what `pieces` raises is passed on.
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
            raise DataError(f"{shard.name}: its bytes are not those the manifest has the sha256 of")
        part.replace(self._path(shard))
        return True

    def _reserve(self, part: Path, room: int, keep: Collection[str]) -> bool:
        """Make room and take it, so that what others are fetching counts too."""
        with self._lock("budget", wait=True):
            self._sweep(part)
            files = [file for file in self._files() if file[2] != part]
            free = self.budget - sum(size for _, size, _ in files)
            spare = [f for f in files if f[2].suffix == ".tar" and f[2].stem not in keep]
            if free + sum(size for _, size, _ in spare) < room:
                return False
            for _, size, path in sorted(spare):
                if free < room:
                    path.unlink(missing_ok=True)
                    free += size
            with part.open("wb") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, room)
                except OSError:  # the disk holds less than the budget
                    return False
            return True

    def _sweep(self, mine: Path) -> None:
        """Remove what killed processes have left."""
        for part in self.folder.glob("*.part"):
            if part != mine:
                with self._lock(part.stem, wait=False) as dead:
                    if dead:
                        part.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """Time of last use, size and path of every shard, those being fetched too."""
        for entry in list(os.scandir(self.folder)):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith((".tar", ".part")):
                    stat = entry.stat()
                    yield stat.st_mtime_ns, stat.st_size, Path(entry.path)

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _lock(self, name: str, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """Hold a lock of this cache among all processes of the node; see `file_lock`."""
        return file_lock(self.folder / "locks" / name, wait=wait)
