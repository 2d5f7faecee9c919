"""`train --allow-faults`: the file of the schedule, and the faults of the command itself."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.config import Config
from jobs.values import construct, read_yaml
from model.settings import SettingError
from pipeline.run.fault_events import Fault
from pipeline.run.fault_schedule import FaultSettings, Schedule, ScheduleSettings
from shards.errors import UsageError
from shards.text import say

if TYPE_CHECKING:
    from jobs.worker import Job

OPTION = "--allow-faults"
POLL_S = 0.1
SIGNALS = {"sigterm": signal.SIGTERM, "driver_kill": signal.SIGKILL}


class Faults:
    """The faults of a file.

    Args:
        path: The file.
        settings: Its content.

    Attributes:
        schedule: The faults of a run, after `plan`.
    """

    def __init__(self, path: Path, settings: ScheduleSettings):
        self.path, self._settings = path, settings
        self.schedule = Schedule()

    @classmethod
    def of(cls, path: Path) -> "Faults":
        """Read a file.

        Raises:
            UsageError: It cannot be read, or an entry is wrong.
        """
        try:
            settings = construct(ScheduleSettings, read_yaml(path))
        except SettingError as error:
            fix = error.fix.replace("./launch.sh settings lists all", "see docs/recovery.md")
            raise UsageError(f"{error.key}{error.what}", where=path, fix=fix) from error
        if not settings.faults and not settings.random.count:
            fix = "write faults: [{kind: kill, at: {rank: 1, step: 10}}], or random: {count: 3}"
            raise UsageError("the file has no faults", where=path, fix=fix)
        return cls(path, settings)

    @property
    def options(self) -> list[str]:
        """The words of a command line that injects these faults."""
        return [OPTION, str(self.path)]

    def plan(self, config: Config) -> None:
        """Decide on the faults of a run, and print them.

        Raises:
            UsageError: The run cannot have one of them.
        """
        workers, steps = config.fewest_workers, config.trainer.steps
        drawn = self._settings.random.drawn(steps, workers)
        named = [(f"faults[{n}]", fault) for n, fault in enumerate(self._settings.faults)]
        for name, fault in [*named, *(("random", fault) for fault in drawn)]:
            if problem := _problem(fault, config, workers):
                raise UsageError(f"{name}{problem[0]}", where=self.path, fix=problem[1])
        self.schedule = Schedule.of([*self._settings.faults, *drawn])
        say(f"faults are injected on purpose ({OPTION} {self.path}):")
        for fault in self.schedule.faults:
            say(f"  {fault}")

    @contextlib.contextmanager
    def of_command(self, job: "Job") -> Iterator[None]:
        """Carry out the faults of this process, which workers record, within the context."""
        from pipeline.run import eventlog  # with torch

        tail, end = eventlog.Tail(job.folder), threading.Event()

        def follow() -> None:
            while not end.wait(POLL_S):
                faults = (event for event in tail.read() if isinstance(event, Fault))
                for fault in faults:
                    if fault.launch == job.launch and fault.kind in SIGNALS:
                        os.kill(os.getpid(), SIGNALS[fault.kind])

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def _problem(fault: FaultSettings, config: Config, workers: int) -> tuple[str, str] | None:
    """Return what is wrong with a fault of a run, and what to do; None if nothing is."""
    if fault.at.rank >= workers:
        fix = f"give a rank below {workers}, the smallest number of workers"
        return f".at.rank={fault.at.rank}", fix
    if (fault.at.step or 0) > config.trainer.steps:
        return f".at.step={fault.at.step}", f"the run has {config.trainer.steps} steps"
    if fault.kind == "loader_kill" and not config.data.loader_workers:
        return ".kind=loader_kill", "it needs data.loader_workers=1 or more"
    return None
