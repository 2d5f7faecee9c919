"""When Ray Train starts and ends the workers of a run, and whether memory was full before."""

import time
from pathlib import Path
from typing import Any

import psutil
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from jobs import memory
from pipeline.run import eventlog
from pipeline.run.start_parts import StartParts

_received = StartParts()


class StartMarks(WorkerGroupCallback):
    """Follows the controller of Ray Train, and passes the times on to the workers.

    Args:
        parts: The parts of the first start so far. Later ones begin with a failure.
        folder: The folder on this host where the run keeps its records; None without any.
        launch: Identifier of the user's command.
    """

    def __init__(self, parts: StartParts, folder: Path | None, launch: str):
        self._parts, self._folder, self._launch = parts, folder, launch
        self._kills = 0

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Remember how often the memory of this machine was full."""
        self._kills = memory.kills()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Record that Ray ends the workers, because one has failed, and whether memory was full."""
        self._parts = StartParts()
        self._parts.end("detection")
        status = worker_group.get_latest_poll_status()
        errors = status.errors if status else {}
        if self._folder and (failure := memory.failure(errors, self._kills, self._launch)):
            eventlog.append(self._folder, failure)

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Record that the workers have ended."""
        self._parts.end("teardown")

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Pass the parts on to the workers, which run and have not begun to train."""
        worker_group.execute(_receive, self._parts)


def _receive(parts: StartParts) -> None:
    global _received
    _received = parts


def received() -> StartParts:
    """Return the parts of this worker's start until now."""
    began = psutil.Process().create_time()
    _received.end("placement", min(began, time.time()))
    return _received
