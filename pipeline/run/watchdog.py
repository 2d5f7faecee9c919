"""End a worker that hangs, with the stacks of its threads, so that all workers are restarted.

Ray notices a process that has died, and torch a collective that takes too long. Neither notices a
read or a write that never returns, or a deadlock.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.run import eventlog, events
from pipeline.run.phases import Phases
from pipeline.run.restarts import HANG
from shards.files import make_folder

STACKS = "stacks"
EXIT_CODE = 86
POLL_S = 1.0
# After which the process ends although its stacks are not written, because the disk may be what
# hangs. Other ranks that wait for this one reach their limit in the meantime and write theirs.
WRITE_S = 10.0


class Watchdog:
    """A thread that ends this process if it makes no progress for too long.

    Args:
        folder: The run folder.
        rank: The rank of this process.
        launch: Identifier of the user's command.
        attempt: Number of this start of the run.
        phases: The phases of this process.
        limit_s: Time without progress, in seconds.
        end: Ends the process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        launch: str,
        attempt: int,
        phases: Phases,
        limit_s: float,
        end: Callable[[int], Any] = os._exit,
    ):
        self._folder, self._rank, self._launch, self._attempt = folder, rank, launch, attempt
        self._phases, self._limit_s, self._end = phases, limit_s, end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        resumed = polled = time.monotonic()
        while not self._stopped.wait(min(POLL_S, self._limit_s / 4)):
            now = time.monotonic()
            if now - polled > self._limit_s / 2:  # the whole process was suspended
                resumed = now
            polled = now
            waited = now - max(resumed, self._phases.since)
            if waited > self._limit_s:
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                writer = threading.Thread(target=self._record, args=(waited,), daemon=True)
                writer.start()
                self._stopped.wait(WRITE_S)
                self._end(EXIT_CODE)
                return

    def _record(self, waited: float) -> None:
        """Write the stacks of all threads, and the failure."""
        path = self._folder / STACKS / f"attempt-{self._attempt:02d}-rank-{self._rank}.txt"
        make_folder(path.parent)
        with path.open("w") as file:
            faulthandler.dump_traceback(file)
        what = f"no progress for {waited:.0f} s in the phase {self._phases.current!r}"
        eventlog.append(self._folder, events.Failure(
            launch=self._launch,
            rank=self._rank,
            kind=HANG,
            text=f"{what}; the stacks of all threads are in {path}",
            what=what,
            where=str(path),
            fix="the stacks show what the worker waited for; if it was not stuck, raise "
            "trainer.hang_timeout_s",
        ))  # fmt: skip
