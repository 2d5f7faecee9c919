"""A shard set below a URL: made shard by shard in a folder here, each sent as it is finished."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from shards.build.writer import STATE, Job, Made, receipt_path, write_shard
from shards.doctor import refuse
from shards.errors import Failed, UsageError
from shards.files import whole_file
from shards.format.index import offsets_path

TRIES = 3
FIRST_PAUSE_S = 1.0  # doubles from try to try

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """The files below `url`: s3, gs, or what else fsspec knows, which also has the credentials.

    What a server refuses is tried TRIES times, then a Failed names the URL. Raises UsageError for
    a URL that nothing here can write to.
    """

    url: str

    def sizes(self) -> dict[str, int]:
        """The files there are, by name below `url`, and their bytes."""

        def found() -> dict[str, int]:
            fs, root = self._fs()
            listed = fs.find(root, detail=True)
            return {path[len(root) + 1 :]: one["size"] for path, one in listed.items()}

        return self._patiently("", found) or {}

    def read(self, name: str) -> bytes | None:
        """A small file, None if it is not there."""
        return self._patiently(name, lambda: self._at(name, "cat_file"))

    def changed(self, name: str) -> int:
        """When a file was written, ns since epoch; 0 where the server does not say."""
        try:
            when = self._patiently(name, lambda: self._at(name, "modified"))
        except NotImplementedError:
            return 0
        return int(when.timestamp() * 1e9) if when else 0

    def size(self, name: str) -> int | None:
        """The bytes of a file, None if it is not there."""
        return self._patiently(name, lambda: self._at(name, "size"))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._patiently(name, lambda: self._at(name, "rm_file"))

    def send(self, path: Path, name: str) -> None:
        """Make `name` the file at `path`."""

        def put() -> bool:
            fs, root = self._fs()
            place = f"{root}/{name}"
            if not fs.async_impl:  # an object store has no folders
                fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(path), place)
            fs.invalidate_cache()
            if (size := fs.size(place)) != path.stat().st_size:
                raise OSError(f"{size} bytes arrived of {path.stat().st_size}")
            return True

        if not self._patiently(name, put):
            raise Failed(f"{self.url}/{name}: there is no such place; make its bucket")

    def fetch(self, name: str, folder: Path) -> None:
        """Put what is there as `name` in `folder`, or nothing."""
        blob = self.read(name)
        (folder / name).unlink(missing_ok=True)
        if blob is not None:
            with whole_file(folder / name) as file:
                file.write(blob)

    def _fs(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system, with nothing remembered, and the path that `url` is in it."""
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{self.url}: {error}") from error
        fs.invalidate_cache()
        return fs, root.rstrip("/")

    def _at(self, name: str, verb: str) -> Any:
        fs, root = self._fs()
        return getattr(fs, verb)(f"{root}/{name}")

    def _patiently(self, name: str, do: Callable[[], T]) -> T | None:
        """What `do` gives, None if a file is not there."""
        for number in range(TRIES):
            if number:
                time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))
            try:
                return do()
            except FileNotFoundError:
                return None
            except (UsageError, NotImplementedError):
                raise
            except Exception as error:  # every file system has its own kinds
                last = error
        raise Failed(
            f"{self.url}/{name}: {last!r}, {TRIES} times over; see that this machine may read and "
            "write there, and run again to go on"
        ) from last


def send_shard(job: Job, target: Target) -> Made:
    """Make a shard and send it, unless an earlier run has; nothing of it is left here."""
    made = _sent_earlier(job, target)
    if made is None:
        receipt_path(job.tar).parent.mkdir(parents=True, exist_ok=True)
        made = write_shard(job)
        target.send(job.tar, job.tar.name)
        target.send(offsets_path(job.tar), offsets_path(job.tar).name)
        target.send(receipt_path(job.tar), f"{STATE}/{receipt_path(job.tar).name}")
    elif job.strict:
        refuse(made.findings)
    for path in (job.tar, offsets_path(job.tar), receipt_path(job.tar)):
        path.unlink(missing_ok=True)
    return made


def _sent_earlier(job: Job, target: Target) -> Made | None:
    """What a run sent that was made from the same inputs, if it is there."""
    name = f"{STATE}/{receipt_path(job.tar).name}"
    receipt = target.read(name)
    if receipt is None or target.changed(name) <= job.changed:
        return None
    made = Made.of(receipt, job)
    sizes = target.size(job.tar.name), target.size(offsets_path(job.tar).name)
    whole = made and sizes == (made.shard.bytes, 8 * (made.shard.samples + 1))
    return made if whole else None
