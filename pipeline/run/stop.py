"""The request to stop a run: a file in its folder that the command writes and every rank reads."""

from pathlib import Path

import torch

from pipeline.distributed import sum_on_hosts

STOP = ".stop"


class Stopped(Exception):
    """The run was asked to stop. It is raised between two steps, on all ranks.

    Args:
        workers: Number of workers that take over; None if nobody does.
    """

    def __init__(self, workers: int | None = None):
        super().__init__(workers)
        self.workers = workers


def request(folder: Path) -> None:
    """Ask the workers of a run to write a checkpoint and end."""
    (folder / STOP).touch()


def withdraw(folder: Path) -> None:
    """Remove a request, which may be of an earlier command."""
    (folder / STOP).unlink(missing_ok=True)


def is_requested(folder: Path) -> bool:
    """Return whether the run was asked to stop."""
    return (folder / STOP).exists()


def check(folder: Path) -> None:
    """Check for a request on this rank; the caller has to let the other ranks know.

    Raises:
        Stopped: The run was asked to stop.
    """
    if is_requested(folder):
        raise Stopped


def check_together(folder: Path) -> None:
    """Check for a request on all ranks, each of which must call this.

    Raises:
        Stopped: Any rank found the request.
    """
    found = torch.tensor(float(is_requested(folder)))
    if sum_on_hosts(found):
        raise Stopped
