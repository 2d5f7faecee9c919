"""Whether a command of this machine trains a run."""

from pathlib import Path

from shards.locks import file_lock

LOCK = ".lock"


def is_running(folder: Path) -> bool:
    """Return whether a command of this machine trains the run."""
    if not (folder / LOCK).exists():
        return False
    with file_lock(folder / LOCK, wait=False) as is_free:
        return not is_free
