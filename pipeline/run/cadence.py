"""When a checkpoint is due, and which interval between checkpoints loses least time."""

import math
import time
from collections.abc import Sequence

from pipeline.run.event import Event
from pipeline.run.events import Finish, Stopped
from pipeline.run.ledger import starts
from pipeline.run.settings import CheckpointSettings

LONGEST_S = 600.0  # of work that a suggested interval can lose
# Assumed until a run has failed: one failure per day on 64 workers, twice as many on 128.
ASSUMED_MTBF_S, ASSUMED_WORKERS = 24 * 3600.0, 64


class Cadence:
    """The rule by which rank 0 decides that a checkpoint is due, by its clock and by the step."""

    def __init__(self, settings: CheckpointSettings):
        self._settings = settings
        self.restart()

    def restart(self) -> None:
        """Count the time from now on, because a checkpoint was saved."""
        self._since = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step."""
        minutes, steps = self._settings.every_minutes, self._settings.every_steps
        if steps is not None and step % steps == 0:
            return True
        return minutes is not None and time.monotonic() - self._since >= 60 * minutes


def mtbf_s(history: Sequence[Event], workers: int) -> float:
    """Return the mean time between the failures of a run, in seconds.

    Every start except for the last one has failed if it neither finished nor was asked to stop.

    Args:
        history: The events of the run, in their order.
        workers: Number of workers, from which the time is assumed if the run never failed.
    """
    attempts = starts(history)
    failed = [s for s in attempts[:-1] if not any(isinstance(e, Finish | Stopped) for e in s)]
    if not failed:
        return ASSUMED_MTBF_S * ASSUMED_WORKERS / workers
    return sum(max(0.0, events[-1].time - events[0].time) for events in attempts) / len(failed)


def suggested_minutes(stall_s: float, write_s: float, mtbf_s: float) -> float:
    """Return the interval between checkpoints that loses least time (Young, 1974).

    Args:
        stall_s: How long training waits for a checkpoint.
        write_s: How long it takes to write one; a shorter interval would wait for it.
        mtbf_s: Mean time between failures.
    """
    best_s = min(math.sqrt(2 * stall_s * mtbf_s), LONGEST_S)
    return float(f"{max(best_s, write_s) / 60:.2g}")
