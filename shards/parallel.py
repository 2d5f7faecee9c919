"""Work on shards, several at a time: each is a unit that is tried again where its process dies."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from shards.errors import Failed
from shards.progress import progress

ATTEMPTS = 3


class Piece(Protocol):
    """What one unit is about: the shard at `tar`. Picklable."""

    tar: Path


# Does the work of every piece and yields (place in the list, result) as they are ready. Raises the
# errors of the work, and Failed where a piece's process has died ATTEMPTS times.
Runner = Callable[[Callable[[Any], Any], list[Piece]], Iterator[tuple[int, Any]]]


def run(
    work: Callable[[Any], Any], pieces: list[Piece], runner: Runner, name: str, sizes: list[int]
) -> list[Any]:
    """The results of `work`, in the order of `pieces`; a terminal sees progress in `sizes`."""
    results: list[Any] = [None] * len(pieces)
    with progress(name, sum(sizes)) as advance:
        for number, result in runner(work, pieces):
            results[number] = result
            advance(sizes[number])
    return results


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def processes(count: int | None = None) -> Runner:
    """A runner on this machine: `count` processes at a time (default: the CPUs), one a piece."""
    return partial(_in_processes, count=count or cpus())


def dead(piece: Piece, how: str) -> Failed:
    """The error for a piece whose process has died ATTEMPTS times."""
    return Failed(
        f"{piece.tar}: its process died {ATTEMPTS} times ({how}), perhaps for want of memory; "
        "run again to go on, with fewer --jobs"
    )


def _in_processes(
    work: Callable[[Any], Any], pieces: list[Piece], *, count: int
) -> Iterator[tuple[int, Any]]:
    if min(count, len(pieces)) <= 1:
        yield from ((number, work(piece)) for number, piece in enumerate(pieces))
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([type(pieces[0]).__module__])
    waiting = deque((number, 1) for number in range(len(pieces)))
    running = {}  # the end of a pipe -> process, number, attempt
    try:
        while waiting or running:
            while waiting and len(running) < count:
                number, attempt = waiting.popleft()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(theirs, work, pieces[number]))
                process.start()
                theirs.close()
                running[ours] = process, number, attempt
            for pipe in wait(list(running)):
                process, number, attempt = running[pipe]
                with pipe:
                    result = _receive(pipe)
                process.join()
                del running[pipe]
                if result is not None:
                    outcome, error = result
                    if error is not None:
                        raise error
                    yield number, outcome
                elif attempt < ATTEMPTS:
                    waiting.appendleft((number, attempt + 1))
                else:
                    raise dead(pieces[number], f"exit code {process.exitcode}")
    finally:
        for process, *_ in running.values():
            process.terminate()
            process.join()


def _receive(pipe: Connection) -> tuple[Any, Exception | None] | None:
    """(result, error) of a piece, or None if its process died."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return None


def _serve(pipe: Connection, work: Callable[[Any], Any], piece: Piece) -> None:
    """Do one piece in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears of Ctrl-C and ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        result = work(piece), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        result = None, error
    pipe.send(result)


def _die_with_parent() -> None:
    """A worker whose parent was killed would work on for nobody; end it instead."""
    multiprocessing.parent_process().join()
    os._exit(1)
