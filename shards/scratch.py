"""Short-lived folders for sockets, whose paths the kernel limits to 107 bytes."""

import contextlib
import fcntl
import multiprocessing.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from shards.errors import UsageError
from shards.locks import LOCAL_FOLDERS

MAX_BYTES = 40  # of such a folder; Ray adds up to 64 bytes to it
LONGEST_TMPDIR = 75  # bytes; multiprocessing adds 32 to it
PREFIX = "m2f-"
SHARED_MEMORY = Path("/dev/shm")
Made = TypeVar("Made")
ABANDONED_AFTER_S = 60  # a new folder is unlocked for an instant


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder with a short path that only this user can open; remove it at the end.

    It is made in the folder for temporary files, or in one of LOCAL_FOLDERS if that path is long.
    The folders that killed processes left beside it, whose locks the kernel released, are removed,
    and so are the semaphores of processes that called `name_semaphores`.

    Raises:
        UsageError: None of them can be written.
    """
    folder = Path(_below_short_folder(partial(tempfile.mkdtemp, None, PREFIX)))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        _remove_abandoned(folder.parent)
        yield folder
    finally:
        os.close(descriptor)
        remove(folder)


def name_semaphores(folder: Path) -> None:
    """Name the semaphores of multiprocessing in this process after a private folder.

    They stay in /dev/shm if the process is killed together with its resource tracker, as Ray does.
    """
    multiprocessing.current_process()._config["semprefix"] = f"/{folder.name}"  # pyright: ignore


def remove(folder: Path) -> None:
    """Remove a private folder and the semaphores that are named after it."""
    shutil.rmtree(folder, ignore_errors=True)
    for semaphore in SHARED_MEMORY.glob(f"sem.{folder.name}-*"):
        semaphore.unlink(missing_ok=True)


def use_short_sockets() -> None:
    """Let multiprocessing make its sockets in another folder if the usual one has a long path."""
    if not all(len(os.fsencode(folder)) <= LONGEST_TMPDIR for folder in _usual()):
        _below_short_folder(_keep_sockets)


def _keep_sockets(parent: str) -> None:
    """Let multiprocessing make its folder, which it removes at exit, below `parent`."""
    usual, tempfile.tempdir = tempfile.tempdir, parent
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = usual


def _below_short_folder(make: Callable[[str], Made]) -> Made:
    tried = {}
    for parent in dict.fromkeys((*_usual(), *LOCAL_FOLDERS)):
        if len(os.fsencode(parent)) + len(f"/{PREFIX}12345678") > MAX_BYTES:
            tried[parent] = "too long for the paths of sockets"
            continue
        try:
            return make(parent)
        except OSError as error:
            tried[parent] = error.strerror or str(error)
    reasons = ", ".join(f"{parent} ({reason})" for parent, reason in tried.items())
    raise UsageError(
        f"no temporary folder can be made: {reasons}",
        where="TMPDIR",
        fix="set it to a folder with a short path that you can write",
    )


def _usual() -> list[str]:
    """Return Python's folder for temporary files, unless that would be the current folder."""
    with contextlib.suppress(OSError):
        folder = tempfile.gettempdir()
        return [folder] if folder != str(Path.cwd()) else []
    return []


def _lock(descriptor: int) -> bool:
    with contextlib.suppress(OSError):  # another process holds it, or there are no locks here
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}????????"):
        with contextlib.suppress(OSError):  # of another user, or removed since
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                age = time.time() - os.fstat(descriptor).st_mtime
                is_mine = os.fstat(descriptor).st_uid == os.getuid()
                if is_mine and age > ABANDONED_AFTER_S and _lock(descriptor):
                    remove(folder)
            finally:
                os.close(descriptor)
