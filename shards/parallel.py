"""Work on shards in several processes at a time.

This does not use a library's pool: `concurrent.futures` gives up all work if one process dies, and
its workers outlive a parent that was killed. Here each piece has its own process (unless only one
runs at a time), which ends with its parent, and if a process dies (usually because memory ran out),
only its piece is tried again.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Protocol

from shards.errors import Failed
from shards.progress import progress
from shards.scratch import use_short_sockets

ATTEMPTS = 3

Work = Callable[[Any], Any]


class Piece(Protocol):
    """The input of one unit of work on a shard. It is picklable."""

    @property
    def tar(self) -> Path:
        """The shard."""
        ...


class Runner(Protocol):
    """Runs a function on every piece, on this machine or on a cluster."""

    def __call__(self, work: Work, pieces: Sequence[Piece]) -> Iterator[tuple[int, Any]]:
        """Yield (index of the piece, result) in the order in which results are ready.

        Raises:
            Failed: The process of a piece died ATTEMPTS times.
            Exception: The first error that `work` raises.
        """
        ...


def run(
    work: Work, pieces: Sequence[Piece], runner: Runner, name: str, sizes: Sequence[int]
) -> list[Any]:
    """Return the results of `work` in the order of `pieces`, and show progress on a terminal.

    Args:
        work: A picklable function of one piece.
        pieces: The pieces.
        runner: Runs the function.
        name: The name of the progress bar.
        sizes: How far each piece advances the bar.
    """
    results: list[Any] = [None] * len(pieces)
    with progress(name, sum(sizes)) as advance:
        for index, result in runner(work, pieces):
            results[index] = result
            advance(sizes[index])
    return results


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def processes(count: int | None = None) -> Runner:
    """Return a runner with `count` (default: one per CPU) processes at a time on this machine."""
    return partial(_in_processes, count=count or cpus())


def died(piece: Piece, how: str) -> Failed:
    """Return the error for a piece whose process died ATTEMPTS times."""
    return Failed(
        f"its process died {ATTEMPTS} times ({how}), perhaps because memory ran out",
        where=piece.tar,
        fix="run the same command to resume, with fewer --jobs",
    )


def _in_processes(work: Work, pieces: Sequence[Piece], *, count: int) -> Iterator[tuple[int, Any]]:
    if min(count, len(pieces)) <= 1:
        yield from ((index, work(piece)) for index, piece in enumerate(pieces))
        return
    use_short_sockets()
    context = multiprocessing.get_context("forkserver")
    function = work.func if isinstance(work, partial) else work
    context.set_forkserver_preload([type(pieces[0]).__module__, function.__module__])
    waiting = deque((index, 1) for index in range(len(pieces)))
    running: dict[Any, tuple[ForkServerProcess, int, int]] = {}  # by the receiving end of a pipe
    try:
        while waiting or running:
            while waiting and len(running) < count:
                index, attempt = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(sender, work, pieces[index]))
                process.start()
                sender.close()  # so that the death of the process ends the pipe
                running[receiver] = process, index, attempt
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                process, index, attempt = running[ready]
                with ready:
                    outcome = _receive(ready)
                process.join()
                del running[ready]
                if outcome is not None:
                    result, error = outcome
                    if error is not None:
                        raise error
                    yield index, result
                elif attempt < ATTEMPTS:
                    waiting.appendleft((index, attempt + 1))
                else:
                    raise died(pieces[index], f"exit code {process.exitcode}")
    finally:
        for process, *_ in running.values():
            process.terminate()
            process.join()


def _receive(pipe: Connection) -> tuple[Any, Exception | None] | None:
    """Return (result, error) of a piece, or None if its process died."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return None


def _serve(pipe: Connection, work: Work, piece: Piece) -> None:
    """Do one piece of work in this process and send the outcome to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this one
    threading.Thread(target=exit_with_parent, daemon=True).start()
    outcome: tuple[Any, Exception | None]
    try:
        outcome = work(piece), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        outcome = None, error
    pipe.send(outcome)


def exit_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
