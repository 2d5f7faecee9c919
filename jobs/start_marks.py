"""When Ray has ended and placed workers, for the record of what a start consists of."""

import time
from typing import Any

import psutil
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from pipeline.run.start_parts import StartParts

_received = StartParts()


class StartMarks(WorkerGroupCallback):
    """Follows the controller of Ray Train, and passes the times on to the workers.

    Args:
        parts: The parts of the first start so far. Later ones begin with a failure.
    """

    def __init__(self, parts: StartParts):
        self._parts = parts

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Record that Ray ends the workers, because one has failed."""
        self._parts = StartParts()
        self._parts.end("detection")

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
