"""Workers that are killed because the memory of their machine is full, by Linux or by Ray."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from pipeline.run.events import Failure

COUNTERS = Path("/proc/vmstat")
KILLED = "oom_kill"  # the counter of processes that Linux has killed because memory was full
# What Ray writes of a worker that its memory monitor has killed. It names the OOM killer of Linux
# as a possible reason for every death.
OF_RAY = ("low on memory", "memory pressure")
KIND = "OutOfMemory"
WHAT = "killed because the memory of its machine was full"
FIX = (
    "lower batch.micro, data.loader_workers, or the number of workers per machine, or write "
    "model.checkpoint_activations=true"
)


def kills() -> int:
    """Return how often Linux has killed a process of this machine because memory was full."""
    with contextlib.suppress(OSError, ValueError):
        counters = dict(line.split() for line in COUNTERS.read_text().splitlines())
        return int(counters.get(KILLED, 0))
    return 0


def failure(errors: Mapping[int, BaseException], since: int, launch: str) -> Failure | None:
    """Return the record of a worker that was killed because memory was full; None without one.

    Args:
        errors: What Ray knows about the end of each worker that failed, by rank.
        since: The value of `kills` before.
        launch: Identifier of the user's command.
    """
    from ray.exceptions import RayActorError

    is_full = kills() > since
    for rank, error in sorted(errors.items()):
        parts = [error, getattr(error, "_base_exc", None), error.__cause__]
        of_ray = any(word in f"{part}" for part in parts for word in OF_RAY)
        has_died = any(isinstance(part, RayActorError) for part in parts)
        if of_ray or (is_full and has_died):
            what = f"{WHAT}: {FIX}"
            return Failure(launch=launch, rank=rank, kind=KIND, text=what, what=WHAT, fix=FIX)
    return None
