"""The processes below this one: they end with it, and none is left when a command is done."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TIMEOUT_S = 10
POLL_S = 0.02


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent dies (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> set[int]:
    """Return the processes below this one, with those that have ended and are not reaped yet."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        new = children.get(waiting.pop(), [])
        found.update(new)
        waiting += new
    return found


def end_descendants(spared: Collection[int] = ()) -> None:
    """Kill every process below this one, except the `spared`, and wait until they have ended.

    A resource tracker of multiprocessing ends with its processes and removes their shared memory.
    It is killed only if it does not.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while (found := descendants() - set(spared)) and time.monotonic() < deadline:
        is_late = time.monotonic() > deadline - TIMEOUT_S / 2
        for process in found:
            if is_late or not _is_resource_tracker(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(POLL_S)
        for process in found:
            with contextlib.suppress(ChildProcessError):  # not a child of this process
                os.waitpid(process, os.WNOHANG)


def _is_resource_tracker(process: int) -> bool:
    with contextlib.suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False
