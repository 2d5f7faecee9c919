"""Files that are there whole or not at all, and their hashes."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from shards.errors import Failed, UsageError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears, synced, when the block has succeeded."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def told_of_disk(place: Path) -> Iterator[None]:
    """Say in our terms what the disk refuses: Failed if it is full, UsageError else."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failed(f"{place}: the disk is full; free space and run again to go on") from error
        raise UsageError(
            f"{error.filename or place}: {error.strerror or error}; mend it and run again to go on"
        ) from error


def leaves_folder(name: str) -> bool:
    """Whether a relative path, as an archive or a list names a file, could lead elsewhere."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name


def is_url(location: str | Path) -> bool:
    """Whether what is there is behind a server, not in a folder."""
    return "://" in str(location)


def sha256(path: Path) -> str:
    """The hash (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
