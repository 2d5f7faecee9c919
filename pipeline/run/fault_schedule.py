"""The schedule of faults that are injected on purpose, without torch, so that it is read fast."""
# ruff: noqa: RUF009 (`setting` returns a dataclasses.field, so that no default is shared)

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.settings import SettingError, Settings, setting

# Faults that strike at any moment. The others strike between two steps.
AT_ANY_MOMENT = ("kill", "stop", "link_down", "sigterm", "driver_kill")
BETWEEN_STEPS = ("hang", "nan", "slow", "truncate", "enospc", "loader_kill")
KINDS = (*AT_ANY_MOMENT, *BETWEEN_STEPS)
OF_COMMAND = ("sigterm", "driver_kill")  # a worker records them, and the command carries them out
DEADLY = ("kill", "hang", "link_down", "loader_kill", "driver_kill", "sigterm")
DELAY_S = 1.0  # longest time from the beginning of a step to a random fault
LAST_SHARE = 0.85  # share of the steps in which random faults begin, so that each can strike


@dataclass
class At(Settings):
    """When a fault strikes, and where."""

    rank: int = setting(0, "Worker that it strikes.", at_least=0)
    step: int | None = setting(None, "First step that it may strike.", at_least=1)
    after_s: float | None = setting(
        None,
        "Time after the beginning of the step, or after the first start of the run.",
        unit="s",
        at_least=0,
    )

    def check(self) -> None:
        """Check that the time is given."""
        if self.step is None and self.after_s is None:
            fix = "write at: {rank: RANK, step: STEP}, with after_s: SECONDS instead, or with both"
            raise SettingError("step", "=null", fix)

    def __str__(self) -> str:
        step = "" if self.step is None else f" at step {self.step}"
        return step + ("" if self.after_s is None else f" after {self.after_s:g} s")


@dataclass
class FaultSettings(Settings):
    """One fault of a schedule."""

    kind: str = setting("", "Kind of the fault.", choices=KINDS)
    at: At = setting(At, "When and where it strikes.")
    seconds: float = setting(5.0, "Length of a `stop`, or of each `slow` step.", unit="s", above=0)
    steps: int = setting(1, "Number of `slow` steps.", at_least=1)

    def check(self) -> None:
        """Check that the worker is one that can have the fault."""
        if self.kind == "enospc" and self.at.rank != 0:
            raise SettingError("at.rank", f"={self.at.rank}", "only worker 0 writes checkpoints")

    def __str__(self) -> str:
        lasts = {"stop": f" for {self.seconds:g} s", "slow": f" by {self.seconds:g} s"}
        where = "" if self.kind in OF_COMMAND else f" of worker {self.at.rank}"
        return f"{self.kind}{lasts.get(self.kind, '')}{where}{self.at}"


@dataclass
class RandomSettings(Settings):
    """Faults that are drawn at random."""

    seed: int = setting(0, "Key of the draws.", at_least=0)
    count: int = setting(0, "Number of faults.", at_least=0)
    kinds: list[str] = setting(["kill"], "Kinds to draw from.", choices=KINDS)

    def drawn(self, steps: int, workers: int) -> list[FaultSettings]:
        """Return the faults for a run of a number of steps and workers, sorted by step."""
        draw = random.Random(self.seed)
        faults = []
        for n in range(self.count):
            kind = self.kinds[n % len(self.kinds)]
            rank = 0 if kind == "enospc" else draw.randrange(workers)
            delay = round(draw.uniform(0, DELAY_S), 3) if kind in AT_ANY_MOMENT else None
            step = draw.randint(1, max(1, int(LAST_SHARE * steps)))
            faults.append(FaultSettings(kind=kind, at=At(rank=rank, step=step, after_s=delay)))
        return sorted(faults, key=lambda fault: fault.at.step or 0)


@dataclass
class ScheduleSettings(Settings):
    """The file of `--allow-faults`."""

    faults: list[FaultSettings] = setting([], "Faults, one by one.")
    random: RandomSettings = setting(RandomSettings, "Faults that are drawn.")


@dataclass(frozen=True)
class Schedule:
    """The faults of a run. Each is injected once, however often the workers restart.

    Attributes:
        faults: The faults by their names in the records: a description, which is numbered if it
            occurs twice.
    """

    faults: dict[str, FaultSettings] = field(default_factory=dict)

    @classmethod
    def of(cls, faults: Sequence[FaultSettings]) -> "Schedule":
        """Return the schedule of a list of faults."""
        named: dict[str, FaultSettings] = {}
        for fault in faults:
            count = sum(name.partition(" #")[0] == str(fault) for name in named)
            named[f"{fault} #{count + 1}" if count else str(fault)] = fault
        return cls(named)
