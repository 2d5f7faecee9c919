"""A process that writes and removes checkpoints while training continues.

It reads requests as lines of JSON and answers each in turn. The bytes of a state lie in memory
that both processes share. This module does not import torch, so that the process starts quickly.
"""

import contextlib
import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any

from pipeline.run import commit

CHECKOUT = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Reply:
    """The outcome of a request.

    Attributes:
        seconds: The time that it took.
        error: Why it failed; None if it did not. A ChildProcessError if the process is gone.
    """

    seconds: float = 0.0
    error: OSError | None = None


class Writer:
    """The process, as the one that trains sees it. It ends with this process, however that ends.

    Args:
        memory: File descriptor of the memory that holds the states.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, memory: int):
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.run.writer", str(os.getpid()), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(memory,),
            start_new_session=True,  # Ctrl-C and the end of a terminal do not reach it
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        )
        self.pid = self._process.pid
        self._end = weakref.finalize(self, _end, self._process)

    def write(self, folder: Path, size: int, trainer: str) -> None:
        """Ask for a checkpoint of the first `size` bytes of the memory.

        Raises:
            ChildProcessError: The process is gone.
        """
        self._ask({"write": str(folder), "size": size, "trainer": trainer})

    def remove(self, folders: Iterable[Path]) -> None:
        """Ask for the removal of checkpoints.

        Raises:
            ChildProcessError: The process is gone.
        """
        self._ask({"remove": [str(folder) for folder in folders]})

    def reply(self, *, wait: bool) -> Reply | None:
        """Return the outcome of the oldest request that has not been answered.

        Args:
            wait: Wait for it. Otherwise the result is None if there is no answer yet.
        """
        assert self._process.stdout is not None
        if not wait and not select([self._process.stdout], [], [], 0)[0]:
            return None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return Reply(error=self._gone())
        answer = json.loads(line)
        return Reply(answer["seconds"], OSError(*answer["error"]) if answer["error"] else None)

    def is_alive(self) -> bool:
        """Return whether the process can still be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process after what it was asked for."""
        self._end()

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._gone() from error

    def _gone(self) -> ChildProcessError:
        code = self._process.wait()
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended ({code})"
        return ChildProcessError(f"the process that writes checkpoints {how}")


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
    process.stdout.close()


def handle(request: dict[str, Any], memory: int) -> dict[str, Any]:
    """Do what a request asks for, and return the answer."""
    start = time.monotonic()
    if "write" in request:
        with (
            mmap.mmap(memory, request["size"], access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as state,
        ):
            # The error has to be gone, with the parts of `state` in its frames, before `state` is.
            error = _error_of(commit.write, Path(request["write"]), state, request["trainer"])
    else:
        error = _error_of(lambda: [commit.remove(Path(folder)) for folder in request["remove"]])
    return {"seconds": time.monotonic() - start, "error": error}


def _error_of(function: Callable[..., object], *args: object) -> tuple[object, ...] | None:
    """Call a function; return the arguments of its OSError, None without any."""
    try:
        function(*args)
    except OSError as error:
        return error.errno, error.strerror or str(error), error.filename
    return None


def main() -> None:
    """Answer requests until there are no more, or the parent is gone."""
    parent, memory = map(int, sys.argv[1:])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for line in sys.stdin.buffer:
        answer = json.dumps(handle(json.loads(line), memory))
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
