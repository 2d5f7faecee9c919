"""Run pieces of work as tasks on a Ray cluster, with this checkout's code on the nodes."""

import contextlib
import logging
import os
import platform
import socket
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.parallel import ATTEMPTS, Piece, Runner, Work, died

ROOT = Path(__file__).parents[1]
CONNECT_TIMEOUT_S = 10


def python_path() -> str:
    """Return the PYTHONPATH of workers: this checkout, then the user's path (for stages)."""
    user = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([str(ROOT), *user]))


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
        UsageError: No cluster answers.
    """
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself would wait for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
        )
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"no Ray cluster answers ({reason})",
            where=f"--on {address}",
            fix="start it, or give --on local",
        ) from error
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
    waiting = {task.remote(work, piece, shared): index for index, piece in enumerate(pieces)}
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


def _do(work: Work, piece: Piece, shared: Collection[Path]) -> Any:
    """Do one piece of work on a node."""
    for path in shared:
        if not path.exists():
            raise UsageError(
                f"is missing on the node {platform.node()}",
                where=path,
                fix="give a folder that all nodes share, or a URL as --out",
            )
    return work(piece)
