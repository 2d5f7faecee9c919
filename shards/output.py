"""The output folder of a build: ours alone, one build at a time, swept of leftovers."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from shards.errors import DataError, UsageError
from shards.manifest import MANIFEST, Manifest
from shards.writer import STATE


def claim(out: Path, source: str) -> None:
    """Make sure that `out` is ours to write in. Raises UsageError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder; give a new or empty one")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} is not writable; give another folder or change its rights")
    for entry in out.iterdir():
        if not ((entry / MANIFEST).is_file() or (entry / STATE).is_dir()):
            raise UsageError(
                f"--out {out} holds {entry.name}, which is no shard set; give a new or empty folder"
            )
        found = source
        with contextlib.suppress(DataError, UsageError):  # damaged or unfinished: ours to mend
            found = Manifest.load(entry).source
        if found != source:
            raise UsageError(f"--out {out} holds a set built from {found}; give another folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other builds out of a split's folder. Raises UsageError if one is at work there."""
    state = folder / STATE
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder} is being built by another process; wait for it") from None
        yield


def clear(folder: Path, keep: set[str]) -> None:
    """Remove what a killed run or a build with more shards has left; `keep` are stems of shards."""
    for path in [*folder.iterdir(), *(folder / STATE).iterdir()]:
        shard = re.fullmatch(r"(\d{6})\.(tar|tar\.idx|json)", path.name)
        if ".tmp-" in path.name or (shard and shard[1] not in keep):
            path.unlink()
