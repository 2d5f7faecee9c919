"""What `drill` found: the faults, the recoveries, and the differences between the two runs."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from jobs import bench
from pipeline.run import checkpoint, eventlog, events
from pipeline.run.eventlog import EVENTS
from pipeline.run.fault_events import Fault
from pipeline.run.fault_schedule import DEADLY
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.track import METRICS
from shards import jsonl
from shards.jsonl import Row

Rows = dict[tuple[int, int], Row]  # by attempt and step
LEARNED = ("loss", "lr", "grad_norm")  # beginnings of the names of what must be equal
TOLERANCE = 1e-5  # relative, if the number of workers has changed


@dataclass
class Restart:
    """A start of the workers after a failure.

    Attributes:
        faults: The faults since the start before.
        step: The step of the checkpoint from which it was resumed.
        repeated: Steps that were lost and are repeated.
        seconds: Time from the last deadly fault to the end of the next step; None if another fault
            struck before that.
        parts: What the time consists of, as far as the run has recorded it.
    """

    faults: list[Fault]
    step: int
    repeated: int
    seconds: float | None
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def is_of_command(self) -> bool:
        """Whether the command had to be repeated."""
        return any(fault.kind == "driver_kill" for fault in self.faults)


class Verdict:
    """The comparison of a run with its undisturbed twin.

    Args:
        undisturbed: The folder of the undisturbed run.
        disturbed: The folder of the other one.
        seen: The rows of metrics that the disturbed run has written, with those it has removed.
        planned: Number of faults that were to strike.
    """

    def __init__(self, undisturbed: Path, disturbed: Path, seen: Rows, planned: int):
        self._seen, self._planned = seen, planned
        self._history = eventlog.read(disturbed)
        starts = [event for event in self._history if isinstance(event, events.Start)]
        self.faults = [event for event in self._history if isinstance(event, Fault)]
        self._parts = {
            row["attempt"]: row
            for row in jsonl.rows(disturbed / EVENTS, {"event": str})
            if row["event"] == "first_step"
        }
        self.restarts = [*self._restarts(starts)]
        worlds = {start.world_size for start in starts}
        self._tolerance = 0.0 if len(worlds) == 1 else TOLERANCE
        self.steps, self.different_steps = self._compare_losses(undisturbed, disturbed)
        self.tensors, self.different_tensors, self.largest = _compare_weights(
            undisturbed, disturbed
        )

    @property
    def is_good(self) -> bool:
        """Whether every fault struck, and nothing is lost."""
        is_same = not self.different_steps and (bool(self._tolerance) or not self.different_tensors)
        return is_same and len(self.faults) == self._planned

    @property
    def repeated(self) -> int:
        """The number of steps that were lost and repeated."""
        return sum(restart.repeated for restart in self.restarts)

    def rows(self) -> list[bench.Row]:
        """Return the rows of the benchmark `recovery`."""
        of_command = sum(fault.kind == "driver_kill" for fault in self.faults)

        def count(name: str, unit: str, value: float, target: str | None = None) -> bench.Row:
            return bench.row(f"recovery.{name}", unit, value, better="lower", target=target)

        rows = [
            count("kills.workers", "kills", len(self.faults) - of_command),
            count("kills.command", "kills", of_command),
            count("steps", "steps", self.steps),
            count("steps.repeated", "steps", self.repeated),
            count("steps.repeated_per_kill", "steps", self.repeated / max(1, len(self.faults))),
            count("steps.different", "steps", self.different_steps, "<= 0"),
            count("tensors.different", "tensors", self.different_tensors, "<= 0"),
        ]
        for name, is_of_command, target in (("worker", False, "<= 15"), ("command", True, "<= 20")):
            found = [r for r in self.restarts if r.is_of_command == is_of_command]
            times = [r.seconds for r in found if r.seconds is not None]
            if not times:
                continue
            rows.append(count(f"{name}.median", "s", statistics.median(times), target))
            rows.append(count(f"{name}.max", "s", max(times)))
            for part in dict.fromkeys(part for r in found for part in r.parts):
                spent = [r.parts[part] for r in found if part in r.parts]
                name_of_part = part.replace(" ", "_")
                rows.append(count(f"{name}.parts.{name_of_part}", "s", statistics.median(spent)))
        return rows

    def show(self) -> None:
        """Print the faults, the recoveries, and the verdict."""
        console = Console()
        table = Table("fault", "in step", "resumed from", "repeated", "next step after", box=SIMPLE)
        begin = self._history[0].time
        for restart in self.restarts:
            *earlier, last = restart.faults or [None]
            for fault in earlier:
                assert fault is not None
                table.add_row(fault.fault, f"{fault.step}", "", "", "")
            after = "" if restart.seconds is None else f"{restart.seconds:.1f} s"
            name, step = (last.fault, f"{last.step}") if last else ("another failure", "")
            table.add_row(name, step, f"{restart.step}", f"{restart.repeated}", after)
        console.print(table)
        total = self._history[-1].time - begin
        differ = f", the largest difference is {self.largest:.3g}" if self.different_tensors else ""
        lines = (
            f"{len(self.faults)} of {self._planned} faults struck in {total:.0f} s",
            f"{self.repeated} steps were lost and repeated, of {self.steps}",
            f"losses without repeats, and those of the repeats: {_said(self.different_steps)} "
            f"of {self.steps} steps",
            f"final weights and moments: {_said(self.different_tensors)} of {self.tensors} "
            f"tensors{differ}",
            "verdict: good" if self.is_good else "verdict: bad",
        )
        for line in lines:
            console.print(line, highlight=False)

    def _restarts(self, starts: list[events.Start]) -> Iterator[Restart]:
        for before, start in pairwise(starts):
            faults = [f for f in self.faults if before.time <= f.time < start.time]
            deadly = [fault.time for fault in faults if fault.kind in DEADLY]
            reached = self._steps_of(before.attempt) or [before.step]
            first = min(self._steps_of(start.attempt), default=None)
            known = self._parts.get(start.attempt)
            end = known or (first is not None and self._seen[start.attempt, first])
            yield Restart(
                faults,
                start.step,
                max(0, max(reached) - start.step),
                end["time"] - deadly[-1] if end and deadly else None,
                known["parts"] if known else {},
            )

    def _steps_of(self, attempt: int) -> list[int]:
        return [step for number, step in self._seen if number == attempt]

    def _compare_losses(self, undisturbed: Path, disturbed: Path) -> tuple[int, int]:
        """Return the number of steps, and of those with other values, missing, or repeated."""
        expected = _learned(jsonl.rows(undisturbed / METRICS, {"step": int}))
        kept = jsonl.rows(disturbed / METRICS, {"step": int})
        found = _learned(kept)
        wrong = {step for step in expected if not self._agree(expected[step], found.get(step))}
        wrong |= found.keys() - expected.keys()
        counts = [row["step"] for row in kept if "loss" in row]
        wrong |= {step for step in counts if counts.count(step) > 1}
        for (_, step), row in self._seen.items():
            if "loss" in row and not self._agree(expected.get(step), _values(row)):
                wrong.add(step)
        return len(expected), len(wrong)

    def _agree(self, ours: Row | None, theirs: Row | None) -> bool:
        if ours is None or theirs is None or ours.keys() != theirs.keys():
            return False
        if not self._tolerance:
            return ours == theirs
        return all(
            ours[name] == theirs[name]
            or abs(ours[name] - theirs[name]) <= self._tolerance * abs(ours[name])
            for name in ours
        )


def _values(row: Row) -> Row:
    return {name: value for name, value in row.items() if name.startswith(LEARNED)}


def _learned(rows: list[Row]) -> dict[int, Row]:
    return {row["step"]: _values(row) for row in rows if "loss" in row}


def _compare_weights(undisturbed: Path, disturbed: Path) -> tuple[int, int, float]:
    """Return the number of tensors, of those that differ, and the largest relative difference."""
    ours, theirs = (
        load_file(checkpoint.committed(run / CHECKPOINTS)[0] / checkpoint.STATE)
        for run in (undisturbed, disturbed)
    )
    missing = ours.keys() ^ theirs.keys()
    both = [name for name in ours if name in theirs]
    different = [name for name in both if not ours[name].equal(theirs[name])]
    gaps = [
        float((ours[name] - theirs[name]).abs().max() / ours[name].abs().max().clamp(min=1e-30))
        for name in different
    ]
    return len(ours), len(missing) + len(different), max(gaps, default=0.0)


def _said(different: int) -> str:
    return "equal to the bit in all" if not different else f"different in {different}"
