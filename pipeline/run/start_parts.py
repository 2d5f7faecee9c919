"""What the time of a start consists of, from the command or a failure to the first step."""

import time
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.run.event import Event

# The phases of a worker between the loading of the checkpoint and the end of the first step.
OF_PHASES = {
    "checkpoint": "first checkpoint",
    "evaluate": "evaluation",
    "data": "first batch",
    "train": "first step",
}
SHOWN_S = 0.05


class StartParts:
    """The parts of a start of the workers; each ends when the next one begins.

    A start passes from the command to Ray and to the workers, so its times are seconds since 1970.

    Args:
        began: When the command started; None if the start follows a failure of workers.

    Attributes:
        ends: The name of each part, and when it ended.
    """

    def __init__(self, began: float | None = None):
        self.began = began
        self.ends: list[tuple[str, float]] = []

    def end(self, part: str, at: float | None = None) -> None:
        """Record the end of a part; `at` is the time if it is not now."""
        self.ends.append((part, time.time() if at is None else at))

    def seconds(self, began: float) -> dict[str, float]:
        """Return the seconds of each part of a start that began at `began`.

        A clock of another host that is behind shortens a part to nothing and never below.
        """
        parts: dict[str, float] = {}
        for part, end in self.ends:
            parts[part] = max(0.0, end - began)
            began = max(began, end)
        return parts


@dataclass(frozen=True, kw_only=True)
class FirstStep(Event):
    """The workers have taken the first step since their start.

    Attributes:
        step: The step.
        attempt: Number of the start.
        restarted: Whether the command had started workers before. Then the time counts from their
            last sign of life, otherwise from the command.
        parts: The seconds of each part of the time until then.
    """

    name: ClassVar = "first_step"
    step: int
    attempt: int
    restarted: bool
    parts: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Return one line about this event for people."""
        shown = [f"{part} {spent:.1f}" for part, spent in self.parts.items() if spent >= SHOWN_S]
        since = "the last sign of the workers before" if self.restarted else "the command"
        return (
            f"step {self.step}: {sum(self.parts.values()):.1f} s after {since}: {', '.join(shown)}"
        )
