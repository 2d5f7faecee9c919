"""Work on a Ray cluster: pieces as tasks, and the code that the nodes run."""

import contextlib
import os
import platform
import socket
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.parallel import ATTEMPTS, Piece, Runner, dead

ROOT = Path(__file__).parents[1]
ANSWER_S = 10


def python_path() -> str:
    """Ours first, then the user's, where the functions of `data.stages` are."""
    theirs = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([str(ROOT), *theirs]))


@contextlib.contextmanager
def tasks(address: str, shared: Collection[Path]) -> Iterator[Runner]:
    """A runner on the cluster at `address`, whose nodes all have to have the paths in `shared`.

    A piece is a task of one CPU, which is tried ATTEMPTS times where its process or node dies.
    Raises UsageError where no cluster answers.
    """
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host:  # Ray itself would wait for minutes
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
        )
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise UsageError(
            f"--on {address}: no Ray cluster answers ({why}); start it, or give --on local"
        ) from error
    try:
        yield partial(_in_tasks, shared=shared)
    finally:
        ray.shutdown()


def _in_tasks(
    work: Callable[[Any], Any], pieces: list[Piece], *, shared: Collection[Path]
) -> Iterator[tuple[int, Any]]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(max_retries=ATTEMPTS - 1)(_do)
    waiting = {task.remote(work, piece, shared): number for number, piece in enumerate(pieces)}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        number = waiting.pop(done)
        try:
            yield number, ray.get(done)
        except RayTaskError as error:
            error.cause.add_note(str(error))
            raise error.cause from None
        except RayError as error:
            raise dead(pieces[number], type(error).__name__) from error


def _do(work: Callable[[Any], Any], piece: Piece, shared: Collection[Path]) -> Any:
    for path in shared:
        if not path.exists():
            raise UsageError(
                f"{path} is not there on the node {platform.node()}; give a folder that all nodes "
                "share, or for --out a URL"
            )
    return work(piece)
