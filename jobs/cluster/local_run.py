"""`status`, `logs`, and `stop` of a run that no scheduler has: by its own files."""

import threading
from collections.abc import Iterator
from pathlib import Path

from jobs import config as configs
from jobs.cluster.submissions import DONE, FAILED, QUEUED, RUNNING, STOPPED, Status
from pipeline.run import eventlog, events, stop
from pipeline.run.checkpoint import committed, step_of
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.track import METRICS
from shards import jsonl
from shards.errors import UsageError
from shards.locks import file_lock

POLL_S = 0.5
LOCK = ".lock"


def status(folder: Path) -> Status:
    """Return the state of a run, and what it has done so far."""
    steps = configs.load_run(folder).trainer.steps
    taken = max((row["step"] for row in jsonl.rows(folder / METRICS, {"step": int})), default=0)
    whole = committed(folder / CHECKPOINTS)
    saved = f"checkpoint of step {step_of(whole[0])}" if whole else "no checkpoint"
    return Status(_state(folder), f"step {taken} of {steps}, {saved}")


def logs(folder: Path, follow: bool) -> Iterator[str]:
    """Yield the events of a run as lines and, if it is followed, those that come while it runs."""
    tail = eventlog.Tail(folder)
    yield from (f"{event.describe()}\n" for event in eventlog.read(folder))
    while follow:
        was_running = is_running(folder)
        yield from (f"{event.describe()}\n" for event in tail.read())
        if not was_running:
            return
        threading.Event().wait(POLL_S)


def request_stop(folder: Path) -> None:
    """Ask a run to write a checkpoint and end.

    Raises:
        UsageError: It does not run.
    """
    if not is_running(folder):
        raise UsageError(f"the run is not running; it is {_state(folder)}", where=folder)
    stop.request(folder)


def is_running(folder: Path) -> bool:
    """Return whether a command of this machine trains the run."""
    if not (folder / LOCK).exists():
        return False
    with file_lock(folder / LOCK, wait=False) as is_free:
        return not is_free


def _state(folder: Path) -> str:
    """Return the state of a run: its last event tells how it ended."""
    if is_running(folder):
        return RUNNING
    ends = (events.Start, events.Finish, events.Stopped, events.Failure)
    history = [event for event in eventlog.read(folder) if isinstance(event, ends)]
    last = type(history[-1]) if history else None
    return {None: QUEUED, events.Finish: DONE, events.Failure: FAILED}.get(last, STOPPED)
