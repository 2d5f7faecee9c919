"""The events of faults that are injected on purpose."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.run.event import Event


@dataclass(frozen=True, kw_only=True)
class FaultsArmed(Event):
    """The workers of this start inject faults; `done` of them have struck before."""

    name: ClassVar = "faults_armed"
    waiting: list[str]
    done: int = 0

    def describe(self) -> str:
        """Return one line about this event for people."""
        return (
            f"faults are injected on purpose (--allow-faults): {len(self.waiting)} to come, "
            f"{self.done} done"
        )


@dataclass(frozen=True, kw_only=True)
class Fault(Event):
    """A fault is injected on purpose.

    Attributes:
        fault: Its name in the schedule.
        kind: Its kind.
        rank: The worker that injects it.
        launch: Identifier of the user's command.
        step: The step that the worker takes.
        target: What it strikes.
    """

    name: ClassVar = "fault"
    fault: str
    kind: str
    rank: int
    launch: str
    step: int
    target: str = ""

    def describe(self) -> str:
        """Return one line about this event for people."""
        target = f" ({self.target})" if self.target else ""
        return f"step {self.step}: injected on purpose: {self.fault}{target}"
