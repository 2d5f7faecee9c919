"""What the user sees while workers train: the run's own files, as they grow."""

import json
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.run.track import EVENTS, METRICS
from pipeline.score.evaluate import HEADLINE

POLL_S = 0.5
PLAIN_LINE_EVERY_S = 15  # where there is no terminal for a bar
TAIL_BYTES = 8192  # holds the last metrics row


class Follower:
    """Prints events and progress, from what is appended to a run folder while the context lasts."""

    def __init__(self, folder: Path, steps: int):
        self._events, self._metrics = folder / EVENTS, folder / METRICS
        self._read = self._events.stat().st_size if self._events.exists() else 0
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
        self._spoke, self._seen = time.monotonic(), -1

    def __enter__(self) -> "Follower":
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self._look()
        self._look()

    def _look(self) -> None:
        if self._events.exists():
            with self._events.open() as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith("\n"):
                        break
                    self._read += len(line.encode())
                    self._say(json.loads(line))
        row = _last_row(self._metrics)
        if row is None or row["step"] == self._seen or row.get("loss") is None:
            return
        self._seen = row["step"]
        text = f"loss {row['loss']:.1f}  {row['images_per_s']:.1f} images/s"
        self._progress.update(self._task, completed=row["step"], text=text)
        late = time.monotonic() - self._spoke > PLAIN_LINE_EVERY_S
        if late and not self._console.is_terminal:
            self._print(f"step {row['step']}/{self._steps}  {text}")

    def _say(self, event: dict[str, Any]) -> None:
        kind, step = event["event"], event.get("step")
        if kind == "start":
            origin = f"from {event['checkpoint']}" if event["checkpoint"] else "from scratch"
            workers = f"{event['world_size']} workers, ZeRO {event['zero_stage']}"
            self._print(f"attempt {event['attempt']}: {workers} on {event['device']}, {origin}")
        elif kind == "evaluation":
            scores = "  ".join(f"{name} {event[name]:.1f}" for name in HEADLINE if name in event)
            self._print(f"step {step}: {scores}")
        elif kind == "init_from":
            self._print(f"model.init_from={event['path']}, {event['text']}")
        elif kind == "failure":
            self._print(f"worker {event['rank']} failed: {event['kind']}: {event['text']}")
        elif kind in ("damage", "quarantined", "skipped", "checkpoint_failed"):
            details = {k: v for k, v in event.items() if k not in ("event", "time")}
            self._print(f"{kind}: {details}")

    def _print(self, text: str) -> None:
        self._spoke = time.monotonic()
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSONL file."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = [line for line in file.read().split(b"\n")[:-1] if line]
    return json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else None
