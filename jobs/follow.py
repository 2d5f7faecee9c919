"""What `train` prints while the workers train: the run's own files, as they grow."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.records import Metrics
from pipeline.run import eventlog, events
from shards.jsonl import Row
from shards.text import printable

POLL_S = 0.5
PLAIN_LINE_EVERY_S = 15  # if the output is not a terminal, and there is no progress bar
SHOWN = {"step": int, "attempt": int, "loss": float, "images_per_s": float}  # of a row of metrics
SILENT = (events.Checkpoint, events.Finish)


class Follower:
    """Prints the events and the progress of a run while the context lasts.

    Args:
        folder: The run folder.
        steps: Number of steps of the whole run.
    """

    def __init__(self, folder: Path, steps: int):
        self._tail, self._metrics = eventlog.Tail(folder), Metrics(folder)
        self._steps = steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._console = Console()
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=steps, text="starting workers")
        self._last_printed, self._last_step = time.monotonic(), -1
        self._warnings: set[str] = set()
        self._advised = False
        self._attempt: int | None = None  # of the workers of this command

    def __enter__(self) -> "Follower":
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._print(text)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self._update()
        self._update()

    def _update(self) -> None:
        for event in self._tail.read():
            self._show(event)
        row = next(filter(self._is_shown, reversed(self._metrics.read())), None)
        if row is None or row["step"] == self._last_step:
            return
        if row["attempt"] != self._attempt:  # of earlier workers
            return
        self._last_step = row["step"]
        text = f"loss {row['loss']:.1f}  {row['images_per_s']:.1f} images/s"
        self._progress.update(self._task, completed=row["step"], text=text)
        is_late = time.monotonic() - self._last_printed > PLAIN_LINE_EVERY_S
        if is_late and not self._console.is_terminal:
            self._print(f"step {row['step']}/{self._steps}  {text}")

    def _is_shown(self, row: Row) -> bool:
        is_whole = all(type(row.get(name)) is kind for name, kind in SHOWN.items())
        return is_whole and 0 <= row["step"] <= self._steps

    def _show(self, event: events.Event) -> None:
        """Print an event; the same warning of several workers or restarts is printed once."""
        if isinstance(event, events.Warned):
            if event.text in self._warnings:
                return
            self._warnings.add(event.text)
        if isinstance(event, events.Start):
            self._attempt = event.attempt
            self._progress.reset(self._task, completed=event.step, text="")
        if isinstance(event, events.Checkpoint) and event.suggested_minutes and not self._advised:
            self._advised = True
            self._print(
                f"step {event.step}: training waited {event.stall_s:.2f} s for a checkpoint, which "
                f"was written in {event.write_s:.1f} s; least time is lost with "
                f"checkpoint.every_minutes={event.suggested_minutes:g}"
            )
        if not isinstance(event, SILENT):
            self._print(event.describe())

    def _print(self, text: str) -> None:
        self._last_printed = time.monotonic()
        encoding = self._console.encoding
        text = text.encode(encoding, "replace").decode(encoding)
        with contextlib.suppress(OSError, SystemExit):  # stdout is closed, as rich finds out
            self._console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
