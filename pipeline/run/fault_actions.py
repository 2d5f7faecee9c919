"""What each injected fault does to the process of a worker, its loaders, sockets, and files."""

import contextlib
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

from pipeline.distributed import all_gather
from pipeline.run import checkpoint

LOADER = "pt_data_worker"  # the name that torch gives to the processes of a DataLoader
FULL = Path("/dev/full")  # each write to it fails with ENOSPC
Ends = tuple[object, object]  # the own and the other address of a connection


def kill(process: int | None = None) -> None:
    """Send SIGKILL to a process, or to this one."""
    os.kill(process or os.getpid(), signal.SIGKILL)


def stop(seconds: float) -> None:
    """Suspend this process; another one lets it continue."""
    program = (
        "import os, signal, sys, time; time.sleep(float(sys.argv[1])); "
        "os.kill(int(sys.argv[2]), signal.SIGCONT)"
    )
    waker = subprocess.Popen([sys.executable, "-S", "-c", program, f"{seconds}", f"{os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    waker.wait()


def hang_on_purpose() -> None:
    """Wait without end."""
    threading.Event().wait()


def loader_process() -> int:
    """Return a loader process of this worker.

    Raises:
        LookupError: It has none.
    """
    for process in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # it has ended
            if Path(f"/proc/{process.pid}/comm").read_text().strip() == LOADER:
                return process.pid or 0
    raise LookupError("the worker has no loader process")


def newest_state(checkpoints: Path) -> Path:
    """Return the file with the tensors of the newest complete checkpoint.

    Raises:
        LookupError: There is no checkpoint.
    """
    for folder in checkpoint.committed(checkpoints):
        return folder / checkpoint.STATE
    raise LookupError("the run has no checkpoint")


def halve(path: Path) -> None:
    """Remove the second half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def refuse_writes(folder: Path) -> None:
    """Let each write to the files of a checkpoint fail, as on a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (checkpoint.STATE, checkpoint.TRAINER_STATE):
        (folder / name).symlink_to(FULL)


class Links:
    """The TCP connections between this worker and the others. All ranks must make one."""

    def __init__(self) -> None:
        everyone = all_gather(sorted(_connections(), key=str))
        others = {ends for connections in everyone for ends in connections}
        self._files = [file for (own, other), file in _connections().items()
                       if (other, own) in others]  # fmt: skip
        self.count = len(self._files)

    def shut(self) -> None:
        """Shut the connections down, in both directions."""
        for file in self._files:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(file)) as link:
                link.shutdown(socket.SHUT_RDWR)


def _connections() -> dict[Ends, int]:
    """Return the file descriptor of each TCP connection of this process by its two ends."""
    found: dict[Ends, int] = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            file = int(path.name)
            if not stat.S_ISSOCK(os.fstat(file).st_mode):
                continue
            with socket.socket(fileno=os.dup(file)) as link:
                if link.family in (socket.AF_INET, socket.AF_INET6):
                    found[link.getsockname(), link.getpeername()] = file
    return found
