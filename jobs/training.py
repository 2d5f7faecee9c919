"""Train a run in workers: restart them, start more of them when they fit, and watch the nodes."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs import memory
from jobs.cluster.node_watch import NodeWatch, watched
from jobs.cluster.ray_cluster import Node, fitting
from jobs.config import Config
from jobs.ray_session import Message, send
from jobs.worker import Job, cpus_per_worker, fit, train_in_worker
from pipeline.run import eventlog, events, stop
from shards.errors import Failed, M2FError


def run_workers(config: Config, job: Job, private: Path) -> str:
    """Train in workers under the Ray of this process, and restart them if they fail.

    If the number of workers has a range, they end at a checkpoint when more fit, and these start.

    Args:
        config: The run's config.
        job: The input of the workers.
        private: As for `fit`.

    Returns:
        "done", "stopped" on request, "crash loop", or "failed".

    Raises:
        UsageError: A node does not have the run folder.
        Failed: Ray's memory monitor has killed the process that controls the workers.
    """
    from ray.exceptions import OutOfMemoryError
    from ray.train import TrainingFailedError

    grown = 0
    while True:
        starts = eventlog.read_kind(job.folder, events.Start)
        failed = max(0, sum(start.launch == job.launch for start in starts) - grown)
        restarts = max(0, config.failure.max_restarts - failed)
        try:
            if job.is_spread:
                _tell(f"waiting for {job.count} workers")
            with _watched(config, job):
                outcome = fit(config, job, train_in_worker, private, restarts)
        except TrainingFailedError:
            return "failed"
        except OutOfMemoryError as error:
            what = f"Ray's controller of the workers was {memory.WHAT}"
            raise Failed(what, where=job.folder.name, fix=memory.FIX) from error
        if outcome != "resized":
            break
        if stop.is_requested(job.folder):
            return "stopped"
        grown, job = grown + 1, replace(job, began=None)
    if isinstance(outcome, M2FError):
        raise outcome
    return outcome or "failed"


def _watched(config: Config, job: Job) -> contextlib.AbstractContextManager[None]:
    """Return a context that ends this process if its cluster has too few nodes for too long."""
    if not job.is_spread:
        return contextlib.nullcontext()

    def workers(nodes: Sequence[Node]) -> int:
        return fitting(nodes, cpus_per_worker(config), job.use_gpu)

    def end(error: M2FError) -> None:
        send(Message("ended", str(error), error))

    fewest = job.fewest or job.workers
    return watched(NodeWatch(workers, fewest, config.failure.nodes_timeout_s, _tell), end)


def _tell(text: str) -> None:
    send(Message("said", text))
