"""The speed of a run, and the part of its time that it waits for data."""

import contextlib
import time
from collections.abc import Iterator


class Meter:
    """Times the steps between two readings.

    Args:
        global_batch: Images of one step.
    """

    def __init__(self, global_batch: int):
        self.global_batch = global_batch
        self.restart()

    def restart(self) -> None:
        """Start a new interval, so that the time since the last reading is excluded."""
        self._started = time.perf_counter()
        self._wait_s, self._steps = 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within the context as waiting for data."""
        started = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - started

    def step(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return the figures of the interval since the last reading, and start a new one."""
        interval_s = time.perf_counter() - self._started
        steps, wait_s = self._steps, self._wait_s
        self.restart()
        return {
            "interval_s": round(interval_s, 4),
            "step_s": round(interval_s / steps, 4),
            "data_wait_s": round(wait_s / steps, 4),
            "images_per_s": round(steps * self.global_batch / interval_s, 3),
        }
