"""Run pieces of work as tasks on a Ray cluster, with this checkout's code on the nodes."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs.cluster.ray_cluster import Variables, check_shared, join
from shards.parallel import ATTEMPTS, Piece, Runner, Work, died


@contextlib.contextmanager
def tasks(address: str, shared: Collection[Path]) -> Iterator[Runner]:
    """Connect to a cluster.

    Args:
        address: HOST:PORT or ray://HOST:PORT.
        shared: The paths that every node must have.

    Yields:
        A runner. A piece is a task on one CPU. A task whose process or node dies is tried again, at
        most ATTEMPTS times in all.

    Raises:
        UsageError: The cluster cannot be joined; see `join`.
    """
    import ray

    with tempfile.TemporaryDirectory() as folder:
        join(Path(folder), address)
    try:
        yield partial(_in_tasks, shared=shared)
    finally:
        ray.shutdown()


def _in_tasks(
    work: Work, pieces: Sequence[Piece], *, shared: Collection[Path]
) -> Iterator[tuple[int, Any]]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(max_retries=ATTEMPTS - 1)(_do)
    variables = Variables.forwarded()
    waiting = {
        task.remote(work, piece, shared, variables): index for index, piece in enumerate(pieces)
    }
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        index = waiting.pop(done)
        try:
            yield index, ray.get(done)
        except RayTaskError as error:
            error.cause.add_note(str(error))
            raise error.cause from None
        except RayError as error:
            raise died(pieces[index], type(error).__name__) from error


def _do(work: Work, piece: Piece, shared: Collection[Path], variables: Variables) -> Any:
    """Do one piece of work on a node."""
    variables.set()
    check_shared(shared)
    return work(piece)
