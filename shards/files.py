"""Files: written whole or not at all, synced, hashed."""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from shards.errors import Failed, UsageError

LONGEST_START = 60  # characters of a temporary name: at most 240 bytes, and file systems take 255
_CLUTTER = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")  # beside hidden files and folders
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; the file appears, synced, only after the block has succeeded.

    A killed process leaves `NAME.tmp-PID` behind, which no reader takes for the file.
    """
    temporary = path.with_name(f"{path.name[:LONGEST_START]}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)  # of a killed process with the same id
    try:
        with temporary.open("xb") as file:
            yield file
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file, whole or not at all, and create its folder if necessary."""
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1).encode() + b"\n")


def make_folder(path: Path) -> None:
    """Create a folder, and those above it, and sync their names to the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: The file is missing, or is a folder, a device, or a FIFO, which could block.
    """
    return os.fdopen(_open_regular(path, os.O_RDONLY), "rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: As for `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
        ValueError: It is not JSON.
    """
    return parse_json(read_regular(path))


def parse_json(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def open_own(path: Path) -> BinaryIO:
    """Open a regular file for reading and appending, and create it if it is missing.

    A symbolic link is refused, because the file behind it may belong to something else.

    Raises:
        OSError: The path is a symbolic link or another kind of file, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    try:
        return os.fdopen(_open_regular(path, flags), "ab+")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a symbolic link is not followed", str(path)) from error
        raise


def _open_regular(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (fsync).

    Some network and FUSE mounts cannot flush a folder; they are used without it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


Mapped = mmap.mmap | bytes


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[Mapped]:
    """Yield the bytes of a file, mapped into memory, or read if the file system cannot map files.

    Raises:
        ValueError: The file is empty.
    """
    with path.open("rb") as file:
        try:
            blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:
            yield file.read()
            return
        with blob:
            yield blob


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


def files_below(
    folder: Path, report: Callable[[str], None], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Path]:
    """Yield the files below a folder, through links to folders too, except for clutter.

    Args:
        folder: The folder; it yields nothing if it does not exist.
        report: Receives a line for a link that leads back to a folder above it, and for a device.
        above: The device and inode of the folders above.
    """
    if not folder.is_dir():
        return
    status = folder.stat()
    this = status.st_dev, status.st_ino
    if this in above:
        report(f"{folder} is a link to a folder above it and is not followed")
        return
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=attrgetter("name"))
    for entry in listed:
        path = folder / entry.name
        if is_clutter(PurePath(entry.name)):
            continue
        if entry.is_file(follow_symlinks=False):
            yield path
        elif path.is_dir():
            yield from files_below(path, report, above | {this})
        elif path.is_file() or not path.exists():  # a link; it may be broken
            yield path
        else:
            report(f"{path} is not a regular file and is skipped")


def expanded(path: str | Path) -> Path:
    """Return a path with ~ and ~USER replaced by a home folder.

    Raises:
        UsageError: The home folder is not known: in containers, HOME can be unset.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            "the home folder is not known", where=path, fix="set HOME, or write the whole path"
        ) from error


def is_url(location: str | Path) -> bool:
    """Return whether a location is a URL instead of a path."""
    return "://" in str(location)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
