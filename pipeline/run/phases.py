"""What a worker does now, and the time that each kind of work has taken since its start."""

import time


class Phases:
    """The phases of one worker. Each moment since its creation belongs to exactly one of them.

    Attributes:
        current: The phase that the worker is in.
        since: When the worker last made progress, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.current, self.since = "start", time.monotonic()
        self._seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """Record progress: the phase that ends now, and the one that begins."""
        self._seconds, self.current, self.since = self.seconds(), phase, time.monotonic()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase up to now."""
        now = time.monotonic()
        known = self._seconds.get(self.current, 0.0)
        return self._seconds | {self.current: known + now - self.since}
