"""Where the shard set of a split goes: a folder, or a URL that finished shards are sent to."""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from shards.build.plan import STATE, ShardPlan
from shards.build.upload import send_shard
from shards.build.writer import BuiltShard, write_shard
from shards.doctor import FINDINGS
from shards.errors import UsageError
from shards.files import expanded
from shards.format.index import SAMPLES
from shards.format.manifest import MANIFEST
from shards.locks import file_lock
from shards.remote import RemoteFolder

STAGING = "~/.cache/mask2former/build"
LOCK = f"{STATE}/lock"


class FolderDestination:
    """A shard set that is built in its final folder.

    Attributes:
        folder: The folder where shards are built.
        location: The folder or URL to show to the user.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.location: Path | str = folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out of the folder.

        Raises:
            UsageError: Another process is building there.
        """
        with file_lock(self.folder / LOCK, wait=False) as held:
            if not held:
                raise UsageError(
                    "another process is building here", where=self.folder, fix="wait until it ends"
                )
            yield

    @property
    def builder(self) -> Callable[[ShardPlan], BuiltShard]:
        """The picklable function that builds one shard."""
        return write_shard

    def load_records(self) -> None:
        """Make sure that the folder has the manifest and the findings of an earlier build."""

    def manifest_time(self) -> int:
        """Return when the manifest was written, in ns since the epoch."""
        return (self.folder / MANIFEST).stat().st_mtime_ns

    def sizes(self) -> Mapping[str, int | None]:
        """Return the size of every file of the set, by name; None if the server does not tell."""
        return {path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()}

    def prepare(self, stems: set[str]) -> None:
        """Remove the manifest first, then what a killed or a larger build has left.

        Args:
            stems: The names, without extension, of the shards to keep.
        """
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for path in [*self.folder.iterdir(), *(self.folder / STATE).iterdir()]:
            if ".tmp-" in path.name or _is_stale(path.name, stems):
                path.unlink()

    def publish(self) -> None:
        """Make the finished set available at its location."""

    def clean_up(self) -> None:
        """Remove the staging folder, if there is one."""


class UrlDestination(FolderDestination):
    """A shard set behind a URL. Shards are built in a staging folder; the manifest is sent last."""

    def __init__(self, folder: Path, remote: RemoteFolder):
        super().__init__(folder)
        self.location = remote.url
        self.remote = remote

    @property
    def builder(self) -> Callable[[ShardPlan], BuiltShard]:
        return partial(send_shard, remote=self.remote)

    def load_records(self) -> None:
        for name in (MANIFEST, FINDINGS):
            self.remote.fetch(name, self.folder / name)

    def manifest_time(self) -> int:
        info = self.remote.info(MANIFEST)
        return info.changed if info else 0

    def sizes(self) -> Mapping[str, int | None]:
        return self.remote.files()

    def prepare(self, stems: set[str]) -> None:
        self.remote.remove(MANIFEST)
        self.remote.send(self.folder / LOCK, LOCK)  # marks the URL as written by a build
        for name in self.remote.files():
            if _is_stale(name.removeprefix(f"{STATE}/"), stems):
                self.remote.remove(name)
        super().prepare(stems)

    def publish(self) -> None:
        for name in (FINDINGS, SAMPLES, MANIFEST):
            self.remote.send(self.folder / name, name)

    def clean_up(self) -> None:
        shutil.rmtree(self.folder)


def staging_folder(source: str, url: str, work: Path | None) -> Path:
    """Return the folder, in `work` or STAGING, where the shards of a URL are built.

    It is the same in every run, so that a build resumes where it stopped.
    """
    name = hashlib.sha256(f"{source} {url}".encode()).hexdigest()
    return expanded(work or STAGING).absolute() / name


def _is_stale(name: str, stems: set[str]) -> bool:
    """Return whether a file belongs to a shard that is not one of `stems`."""
    shard = re.fullmatch(r"(\d{6})\.(tar|tar\.idx|json)", name)
    return bool(shard) and shard[1] not in stems
