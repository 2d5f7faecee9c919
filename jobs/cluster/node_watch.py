"""Ends a command whose cluster has lost nodes that do not come back."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jobs.cluster.ray_cluster import Node
from shards.errors import Failed, M2FError

POLL_S = 5


def living_nodes() -> list[Node]:
    """Return the nodes of the cluster that this process has joined, with all their resources."""
    import ray

    return [_node(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]


def free_nodes() -> list[Node]:
    """Return the nodes of the cluster with the resources that nobody has reserved."""
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [_node(node, free.get(node["NodeID"], {})) for node in alive]


def _node(node: Mapping[str, Any], resources: Mapping[str, float]) -> Node:
    cpus, gpus = (resources.get(name, 0) for name in ("CPU", "GPU"))
    return Node(node["NodeManagerHostname"], node["NodeManagerAddress"], cpus, gpus)


class NodeWatch:
    """Compares the nodes of a cluster with what the workers need.

    Args:
        fitting: Returns the number of workers that fit on some nodes.
        workers: Number of workers.
        limit_s: Longest time with too few nodes.
        tell: Receives lines for people.
    """

    def __init__(
        self,
        fitting: Callable[[Sequence[Node]], int],
        workers: int,
        limit_s: float,
        tell: Callable[[str], None],
    ):
        self._fitting, self._workers, self._limit_s, self._tell = fitting, workers, limit_s, tell
        self._since: float | None = None

    def check(self, nodes: Sequence[Node], now: float) -> None:
        """Look at the nodes at a time in seconds.

        Raises:
            Failed: There have been too few for longer than the limit.
        """
        if (fitting := self._fitting(nodes)) >= self._workers:
            if self._since is not None:
                self._tell("the cluster has enough nodes again")
            self._since = None
            return
        names = ", ".join(node.host for node in nodes)
        text = f"the cluster has nodes for only {fitting} of {self._workers} workers ({names})"
        if self._since is None:
            self._since = now
            self._tell(f"{text}; training waits up to {self._limit_s:g} s for others")
        elif now - self._since > self._limit_s:
            raise Failed(
                f"{text} since {self._limit_s:g} s",
                where="failure.nodes_timeout_s",
                fix="start Ray on other nodes, or lower scaling.workers; then run the command "
                "again, which resumes",
            )


@contextlib.contextmanager
def watched(watch: NodeWatch, end: Callable[[M2FError], None]) -> Iterator[None]:
    """Look at the nodes every POLL_S seconds within the context.

    If they are too few for too long, this process ends, and the cluster ends its workers.

    Args:
        watch: Compares the nodes with what is needed.
        end: Receives the error before this process ends.
    """
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(POLL_S):
            try:
                watch.check(living_nodes(), time.monotonic())
            except M2FError as error:
                end(error)
                os._exit(1)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
