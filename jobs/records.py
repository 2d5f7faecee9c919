"""The records of a run as people see them: its rows of metrics, its state, and its progress."""

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import config as configs
from jobs.cluster.local_run import LOCK, is_running
from pipeline.run import eventlog, events
from pipeline.run.folder import CONFIG, best_step, scores_of
from pipeline.run.lease import ABANDONED_S, LEASE
from pipeline.run.ledger import goodput, ledger
from pipeline.run.storage import Puller, is_record, local_folder
from pipeline.run.track import METRICS
from pipeline.score.headline import METRIC_OF_TASK
from shards import jsonl
from shards.errors import M2FError, UsageError
from shards.files import is_url, open_regular
from shards.jsonl import Row
from shards.remote import RemoteFolder

SERIES = (
    *("step", "time", "loss", "loss_ce", "loss_mask", "loss_dice", "lr", "grad_norm", "step_s"),
    *("data_wait_s", "images_per_s", "images_per_s_per_worker", "damaged_samples"),
    *("skipped_steps", "attempt"),
)
MAX_NUMBER = 1e300
WATCHED = "watched"  # the folders of this host for runs on storage that are watched
ENDS = (events.Start, events.Finish, events.Stopped, events.Failure)
RUNNING, RESTARTING, FINISHED = "running", "restarting", "finished"
STOPPED, FAILED, SILENT = "stopped", "failed", "silent"


class Metrics:
    """The rows of metrics.jsonl, of which each call of `read` takes only what is new.

    Args:
        folder: The run folder.

    Attributes:
        rows: The rows so far that have a step, with the names in SERIES only: a long run has many.
        last: The last whole row.
    """

    def __init__(self, folder: Path):
        self._path = folder / METRICS
        self._file, self._offset = -1, 0
        self.rows: list[Row] = []
        self.last: Row = {}

    def read(self) -> list[Row]:
        """Return all rows. If a resumed run has written the file again, it is read from the start.

        There are no new rows while the file is missing or cannot be read.
        """
        try:
            with open_regular(self._path) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._offset:
                    self._file, self._offset, self.rows = status.st_ino, 0, []
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return self.rows
        self._offset += len(whole + newline)
        for line in whole.split(b"\n"):
            if (row := jsonl.parse(line, {"step": int})) is not None:
                self.rows.append({name: row[name] for name in SERIES if name in row})
                self.last = row if "loss" in row else self.last
        return self.rows


def numbers(rows: Sequence[Row], name: str) -> list[float]:
    """Return the values of a metric that are finite numbers, in the order of the rows."""
    values = (row.get(name) for row in rows)
    return [float(v) for v in values if isinstance(v, int | float) and abs(v) < MAX_NUMBER]


@dataclass
class View:
    """A run whose records are read again and again.

    Attributes:
        location: The run for people: its path or URL.
        folder: The run folder, or the folder of this host that stands for it.
        puller: Brings the records of a run on storage; None for a local run.
        config: The settings of the run.
        metrics: Its rows of metrics.
        history: Its events.
        beat: When its owner has last renewed the lease, in seconds since 1970; 0 without a lease.
    """

    location: str
    folder: Path
    puller: Puller | None = None
    config: configs.Config = field(init=False)
    metrics: Metrics = field(init=False)
    history: list[events.Event] = field(default_factory=list)
    beat: float = 0.0

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.folder)

    @classmethod
    def of(cls, run: str) -> "View":
        """Return the run of a name, a path, or a URL, with its records.

        Raises:
            UsageError: There is no such run, or its settings are damaged.
            Failed: The storage does not answer.
        """
        view = cls.at(run if is_url(run) else str(configs.run_folder(run)))
        view.read()
        return view

    @classmethod
    def at(cls, location: str) -> "View":
        """Return the run at a path or a URL, whose records are not read yet."""
        if not is_url(location):
            folder = Path(location).absolute()
            return cls(str(folder), folder)
        url = location.rstrip("/")
        folder = local_folder(url, WATCHED)
        return cls(url, folder, Puller(RemoteFolder(url), folder))

    def read(self, *, with_metrics: bool = True) -> None:
        """Read what is new in the records.

        Args:
            with_metrics: Read the metrics too, which are large.

        Raises:
            UsageError: There is no run, or its settings are damaged.
            Failed: The storage does not answer.
        """
        if self.puller is not None:
            unwanted = () if with_metrics else (METRICS,)
            infos = self.puller.pull_run(lambda name: is_record(name) and name not in unwanted)
            self.beat = infos[LEASE].changed / 1e9 if LEASE in infos else 0.0
        elif (self.folder / LEASE).exists():
            self.beat = (self.folder / LEASE).stat().st_mtime
        self.config = configs.load_run(self.folder)
        self.history = eventlog.read(self.folder)
        if with_metrics:
            self.metrics.read()

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return self.config.trainer.steps

    @property
    def start(self) -> events.Start | None:
        """The last start of the workers."""
        starts = [event for event in self.history if isinstance(event, events.Start)]
        return starts[-1] if starts else None

    @property
    def step(self) -> int:
        """The last step that is known to be taken."""
        start = self.start
        since = self.history[self.history.index(start) :] if start else []
        taken = [getattr(event, "step", 0) for event in since]
        rows = [row["step"] for row in self.metrics.rows[-1:]]
        return min(max([0, *taken, *rows]), self.steps)

    @property
    def last_sign(self) -> float:
        """The time of the last record, in seconds since 1970; 0 without one."""
        times = [event.time for event in self.history[-1:]]
        return max([0.0, self.beat, *times, *numbers(self.metrics.rows[-1:], "time")])

    def state(self, now: float) -> tuple[str, float]:
        """Return the state of the run, and the seconds since its last sign of life.

        The lock of a command of this machine tells whether it lives, and its lease otherwise.
        """
        age = max(0.0, now - self.last_sign)
        ends = [event for event in self.history if isinstance(event, ENDS)]
        ends = [event for event in ends if not getattr(event, "workers", None)]  # others take over
        last = type(ends[-1]) if ends else None
        if last is events.Finish:
            return FINISHED, age
        is_local = self.puller is None and (self.folder / LOCK).exists()
        is_here = is_local and (self.start is None or self.start.host == platform.node())
        lives = is_running(self.folder) if is_here else age < ABANDONED_S
        if last is events.Stopped:
            return STOPPED, age
        if lives:
            return (RESTARTING if last is events.Failure else RUNNING), age
        return (FAILED if last is events.Failure else SILENT), age

    def best(self) -> tuple[str, float, int] | None:
        """Return the name and value of the best score and its step; None without a score."""
        name = METRIC_OF_TASK[self.config.task]
        step = best_step(self.folder, self.config.task)
        return None if step is None else (name, scores_of(self.folder, step)[name], step)

    def goodput(self) -> float | None:
        """Return the share of training in the time of the run's commands; None without any."""
        return goodput(ledger(self.history))


def summary(view: View, now: float) -> dict[str, Any]:
    """Return one row of the list of runs, as JSON types."""
    state, age = view.state(now)
    best = view.best()
    useful = view.goodput()
    return {
        "name": view.location.rstrip("/").rpartition("/")[2],
        "location": view.location,
        "state": state,
        "step": view.step,
        "steps": view.steps,
        "metric": best[0] if best else None,
        "best": round(best[1], 2) if best else None,
        "best_step": best[2] if best else None,
        "silent_s": round(age) if view.last_sign else None,
        "goodput": None if useful is None else round(useful, 3),
        "problem": "",
    }


def listed(runs: str) -> list[dict[str, Any]]:
    """Return a row for every run at a location, those with the newest records first.

    Args:
        runs: A folder or a URL.

    Raises:
        UsageError: The folder does not exist.
        Failed: The storage does not answer.
    """
    if is_url(runs):
        names = RemoteFolder(runs.rstrip("/")).files()
        found = sorted({n.split("/")[0] for n in names if n.split("/")[1:] == [CONFIG]})
        locations = [f"{runs.rstrip('/')}/{name}" for name in found]
    elif Path(runs).is_dir():
        locations = sorted(str(path.parent) for path in Path(runs).glob(f"*/{CONFIG}"))
    else:
        raise UsageError("no such folder", where=runs, fix="give the folder or URL of the runs")
    rows = [_row(location) for location in locations]
    return sorted(rows, key=lambda row: math.inf if row["silent_s"] is None else row["silent_s"])


def _row(location: str) -> dict[str, Any]:
    try:
        view = View.at(location)
        view.read(with_metrics=not is_url(location))
        return summary(view, time.time())
    except M2FError as error:
        unknown = ("step", "steps", "metric", "best", "best_step", "silent_s", "goodput")
        return {
            "name": location.rpartition("/")[2],
            "location": location,
            "state": "unreadable",
            **dict.fromkeys(unknown),
            "problem": str(error),
        }
