"""What a start takes from the starts before it: its number, the identity of the run, the limit."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.keyed import keyed_seed
from pipeline.run import checkpoint, eventlog
from pipeline.run.events import Event, Failure, FirstStep, Start
from pipeline.run.location import location_of
from pipeline.run.phases import Phases
from pipeline.run.start_parts import OF_PHASES, StartParts
from shards.files import is_url

MAX_STARTS_AT_ONE_STEP = 3
HANG = "Hang"  # the kind of a failure that was noticed long after the last sign of life


def next_attempt(checkpoints: Path, starts: Sequence[Start]) -> int:
    """Return a number that neither an earlier start nor a checkpoint has.

    Records can be lost; a second checkpoint with the number and step of another would overwrite it.
    """
    known = [checkpoint.last_attempt(checkpoints), len(starts), *(s.attempt for s in starts)]
    return max(known) + 1


def run_id(name: str, folder: Path, starts: Sequence[Start]) -> str:
    """Return the identifier of a run in W&B.

    The records keep it when the folder is renamed. A copy beside the original gets another one.
    Runs of older versions have none in their records; it follows from their folder. The agent of a
    sweep chooses the identifier of a new run.
    """
    known = [start for start in starts if start.run_id]
    if known and not _is_copy(folder, known[-1]):
        return known[-1].run_id
    is_old = starts and not known
    of_sweep = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
    if not starts and of_sweep:
        return of_sweep
    digits = f"{keyed_seed(folder) % 16**8:08x}" if is_old else secrets.token_hex(4)
    return f"{name}-{digits}"


def _is_copy(folder: Path, last: Start) -> bool:
    """Return whether the last start of a run was in another folder, which still has that run.

    A run that is or was on storage has been moved, because it belongs to no host.
    """
    if is_url(last.folder) or is_url(location_of(folder)):
        return False
    original = Path(last.folder)
    if original.resolve() == folder.resolve() or not original.is_dir():
        return False
    return any(start.run_id == last.run_id for start in eventlog.read_kind(original, Start))


def first_step(history: Sequence[Event], parts: StartParts, step: int, phases: Phases) -> FirstStep:
    """Return the record of the first step after a start, which is the last one in the history.

    Args:
        history: The events of the run.
        parts: The parts of the start until the checkpoint was loaded.
        step: The step.
        phases: The phases of this worker since the start was recorded.
    """
    *_, last = (index for index, event in enumerate(history) if isinstance(event, Start))
    start = history[last]
    assert isinstance(start, Start)
    began = parts.began or _last_sign(history[:last], start) or parts.ends[0][1]
    later = phases.seconds()
    spent = {part: later[phase] for phase, part in OF_PHASES.items() if phase in later}
    return FirstStep(
        step=step,
        attempt=start.attempt,
        restarted=parts.began is None,
        parts=parts.seconds(began) | spent,
    )


def _last_sign(before: Sequence[Event], start: Start) -> float | None:
    """Return the time of the last sign of life of the workers before a restart; None without any.

    A worker whose peer dies fails at once, which is known better than the last row of metrics.
    """
    attempt: list[Event] = []
    for event in before:
        if isinstance(event, Start):
            attempt = [event] if event.launch == start.launch else []
        elif attempt:
            attempt.append(event)
    failures = [event for event in attempt if isinstance(event, Failure)]
    signs = [event.time for event in attempt if not isinstance(event, Failure)]
    first = min((event.time for event in failures if event.kind != HANG), default=None)
    return first or (max(start.last_sign, *signs) if signs else None)


def is_crash_loop(history: Sequence[Event], launch: str) -> bool:
    """Return whether the last starts of a command all failed on their own, from the same step.

    A start that was killed from outside leaves no error, or only the errors of workers whose peer
    is gone. It does not count: `failure.max_restarts` limits kills.

    Args:
        history: The events of the run.
        launch: Identifier of the user's command.
    """
    steps: list[int] = []
    is_own = True
    for event in history:
        if isinstance(event, Start) and event.launch == launch:
            steps = [*steps, event.step] if is_own else [event.step]
            is_own = False
        elif isinstance(event, Failure) and event.launch == launch:
            is_own |= not event.lost_peer
    last = steps[-MAX_STARTS_AT_ONE_STEP:]
    return is_own and len(last) == MAX_STARTS_AT_ONE_STEP and len(set(last)) == 1
