"""Files: written whole or not at all, synced, locked, hashed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from shards.errors import Failed, UsageError

_CLUTTER = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")  # beside hidden files and folders


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; the file appears, synced, only after the block has succeeded."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file, whole or not at all, and create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock among all processes of this node.

    The kernel releases the lock when its holder exits, so a killed process leaves none behind.

    Args:
        path: The lock file; its folder is created if necessary, and the file stays.
        wait: Wait for the lock. Otherwise yield False at once if another process holds it.

    Yields:
        Whether the lock is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate an OSError of the block: Failed if the disk is full, UsageError otherwise.

    Args:
        path: The file or folder to name if the error names none.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failed(
                "the disk is full", where=path, fix="free space and run the same command to resume"
            ) from error
        raise UsageError(
            error.strerror or str(error),
            where=error.filename or path,
            fix="fix it and run the same command to resume",
        ) from error


def leaves_folder(name: str) -> bool:
    """Return whether a relative path from an archive or a list could point outside its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name


def is_clutter(path: PurePath) -> bool:
    """Return whether a relative path is what systems and tools leave between the data.

    Examples are `.DS_Store`, `._a.jpg`, `.ipynb_checkpoints/a.jpg`, and `Thumbs.db`.
    """
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in path.parts)


def is_url(location: str | Path) -> bool:
    """Return whether a location is a URL instead of a path."""
    return "://" in str(location)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
