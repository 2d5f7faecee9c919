"""Locks among the processes of a machine, also on file systems that have none."""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shards.errors import UsageError
from shards.files import open_own

LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # for short paths and for locks
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock among all processes of this node.

    The kernel releases the lock when its holder exits, so a killed process leaves none behind. On a
    file system without locks (Lustre without -o flock, NFS without lockd) a file on a local one
    stands for it, with a warning, because it keeps only processes of one user apart.

    Args:
        path: The lock file; its folder is created if necessary. The file stays, and so do its
            bytes.
        wait: Wait for the lock. Otherwise yield False at once if another process holds it.

    Yields:
        Whether the lock is held.

    Raises:
        OSError: The path is not a regular file, or cannot be locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_own(path) as file:
        try:
            is_held = _flock(file, wait)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        else:
            yield is_held
            return
    warnings.warn(
        f"the file system of {path} has no locks; the lock holds for commands of this user on this "
        "machine only",
        stacklevel=3,
    )
    with open_own(_local_lock(path)) as file:
        yield _flock(file, wait)


def _flock(file: BinaryIO, wait: bool) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    return False


def _local_lock(path: Path) -> Path:
    """Return the file that stands for a lock file on a file system without locks."""
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    for parent in LOCAL_FOLDERS:
        folder = Path(parent, f"m2f-locks-{os.getuid()}")
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                return folder / name
    raise UsageError(
        "the file system has no locks, and neither have local ones",
        where=path,
        fix=f"make one of {', '.join(LOCAL_FOLDERS)} writable",
    )
