"""Warnings of a worker as events of its run, so that people see them."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.run import eventlog, events


@contextlib.contextmanager
def recorded_warnings(folder: Path, rank: int) -> Iterator[None]:
    """Append the warnings within the context to the events of a run.

    Warnings about code, which concern its developers (deprecated names), are left out. Ray hides
    what a worker prints, so that the events are the only way for a warning to reach people.

    Args:
        folder: The run folder.
        rank: The rank of this process.
    """
    show = warnings.showwarning

    def record(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        show(message, category, *rest, **more)
        if issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
            return
        warned = events.Warned(rank=rank, category=category.__name__, text=str(message))
        eventlog.append(folder, warned)

    warnings.showwarning = record
    try:
        yield
    finally:
        warnings.showwarning = show
