"""The ledger of a run: every second of its wall time belongs to exactly one kind of work."""

from collections.abc import Sequence
from itertools import pairwise

from pipeline.run.event import Event
from pipeline.run.events import Checkpoint, Finish, Start, Stopped

# start: from the command to the first batch. recover: from the last sign of life of workers to the
# next start by the same command. stopped: no command was running. lost: work that was done again.
KINDS: tuple[str, ...] = (
    "start",
    "data",
    "train",
    "evaluate",
    "checkpoint",
    "recover",
    "lost",
    "stopped",
)


def ledger(history: Sequence[Event]) -> dict[str, float]:
    """Return the seconds of each of KINDS between the first command and the last event.

    The time since the last checkpoint of workers that were not restarted yet counts as `train`. The
    seconds inside an attempt are those of a monotonic clock. Those between attempts follow from the
    times of events, of which a clock that was set back makes negative differences; they count as 0.

    Args:
        history: The events of the run, in their order.
    """
    seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    attempts = starts(history)
    if not attempts:
        return seconds
    first = attempts[0][0]
    seconds["start"] += first.time - _command_time(first)
    for events, following in pairwise([*attempts, []]):
        start = events[0]
        resumed_at = [later[0].step for later in attempts if later[0].attempt > start.attempt]
        kept = _kept(events, min(resumed_at, default=None))
        for phase, spent in (kept.seconds if kept else {}).items():
            seconds[phase] += spent
        recorded = start.time + sum(kept.seconds.values()) if kept else start.time
        if not following:
            seconds["train"] += max(0.0, events[-1].time - recorded)
            continue
        end = min(max(events[-1].time, following[0].last_sign, recorded), following[0].time)
        gap = {"lost": end - recorded, **_gap(start, end, following[0])}
        for kind, spent in gap.items():
            seconds[kind] += max(0.0, spent)
    return seconds


def goodput(seconds: dict[str, float]) -> float | None:
    """Return the share of training and data in the time of a run's commands; None without any."""
    total = sum(seconds.values()) - seconds["stopped"]
    return (seconds["train"] + seconds["data"]) / total if total > 0 else None


def starts(history: Sequence[Event]) -> list[list]:
    """Return the events of each start of the workers, from the start on."""
    attempts: list[list] = []
    for event in history:
        if isinstance(event, Start):
            attempts.append([event])
        elif attempts:
            attempts[-1].append(event)
    return attempts


def _command_time(start: Start) -> float:
    """Return when the command of a start began; that of the start if it is not known."""
    try:
        return min(float(start.launch), start.time)
    except ValueError:
        return start.time


def _kept(events: Sequence[Event], step: int | None) -> Checkpoint | Stopped | Finish | None:
    """Return the last record of an attempt up to `step`, after which its work was repeated."""
    records = [event for event in events if isinstance(event, Checkpoint | Stopped | Finish)]
    records = [record for record in records if record.seconds]
    return next((r for r in reversed(records) if step is None or r.step <= step), None)


def _gap(start: Start, end: float, following: Start) -> dict[str, float]:
    """Return the seconds of each kind between the end of an attempt and the next one."""
    if following.launch == start.launch:
        return {"recover": following.time - end}
    command = max(end, _command_time(following))
    return {"stopped": command - end, "start": following.time - command}
