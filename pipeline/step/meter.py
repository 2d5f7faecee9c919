"""How fast a run goes, and how much of its time it waits for data."""

import contextlib
import time


class Meter:
    """Times steps between two readings."""

    def __init__(self, global_batch: int):
        self.global_batch = global_batch
        self.restart()

    def restart(self) -> None:
        """Begin a new interval (time spent on evaluations is nobody's)."""
        self._started = time.perf_counter()
        self._wait_s, self._steps = 0.0, 0

    @contextlib.contextmanager
    def waiting(self):
        """Time within is spent on waiting for data."""
        started = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - started

    def step(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Figures of the interval, which ends here."""
        interval_s = time.perf_counter() - self._started
        steps, wait_s = self._steps, self._wait_s
        self.restart()
        return {
            "interval_s": round(interval_s, 4),
            "step_s": round(interval_s / steps, 4),
            "data_wait_s": round(wait_s / steps, 4),
            "images_per_s": round(steps * self.global_batch / interval_s, 3),
        }
