"""The output folder of a build: ours alone, one build at a time, swept of leftovers."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from shards.build.writer import STATE
from shards.errors import DataError, UsageError
from shards.files import file_lock
from shards.format.manifest import MANIFEST, Manifest
from shards.remote import RemoteFolder

WORK = "~/.cache/mask2former/build"
LOCK = f"{STATE}/lock"


def staging(source: str, url: str, work: Path | None) -> Path:
    """The folder, in `work` or WORK, where what goes to `url` is made: the same in every run."""
    name = hashlib.sha256(f"{source} {url}".encode()).hexdigest()
    return (work or Path(WORK)).expanduser().absolute() / name


def claim_url(url: str, source: str) -> None:
    """Make sure that `url` is ours to write below. Raises UsageError if it holds anything else."""
    remote = RemoteFolder(url)
    there = remote.files()
    for entry in {name.partition("/")[0] for name in there}:
        ours = any(name.startswith((f"{entry}/{MANIFEST}", f"{entry}/{STATE}/")) for name in there)
        found = source
        if f"{entry}/{MANIFEST}" in there:
            with contextlib.suppress(ValueError, AttributeError):  # damaged: ours to mend
                found = json.loads(remote.read(f"{entry}/{MANIFEST}")).get("source", source)
        _check_entry(url, entry, ours, source, found)


def claim(out: Path, source: str) -> None:
    """Make sure that `out` is ours to write in. Raises UsageError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder; give a new or empty one")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} is not writable; give another folder or change its rights")
    for entry in out.iterdir():
        ours = (entry / MANIFEST).is_file() or (entry / STATE).is_dir()
        found = source
        with contextlib.suppress(DataError, UsageError):  # damaged or unfinished: ours to mend
            found = Manifest.load(entry).source
        _check_entry(out, entry.name, ours, source, found)


def _check_entry(out: Path | str, name: str, ours: bool, source: str, found: str) -> None:
    if not ours:
        raise UsageError(
            f"--out {out} holds {name}, which is no shard set; give a new or empty folder"
        )
    if found != source:
        raise UsageError(f"--out {out} holds a set built from {found}; give another folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of a split's folder. Raises UsageError if one is at work there."""
    with file_lock(folder / LOCK, wait=False) as held:
        if not held:
            raise UsageError(
                "another process is building here", where=folder, fix="wait until it ends"
            )
        yield


def clear(folder: Path, keep: set[str]) -> None:
    """Remove what a killed run or a build with more shards has left; `keep` are stems of shards."""
    for path in [*folder.iterdir(), *(folder / STATE).iterdir()]:
        if ".tmp-" in path.name or _is_stale(path.name, keep):
            path.unlink()


def clear_url(remote: RemoteFolder, keep: set[str]) -> None:
    """Remove what a build with more shards has left there."""
    for name in remote.files():
        if _is_stale(name.removeprefix(f"{STATE}/"), keep):
            remote.remove(name)


def _is_stale(name: str, keep: set[str]) -> bool:
    shard = re.fullmatch(r"(\d{6})\.(tar|tar\.idx|json)", name)
    return bool(shard) and shard[1] not in keep
