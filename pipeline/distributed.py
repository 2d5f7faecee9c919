"""What the ranks of a process group tell one another, so that they go on or end together."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from shards.errors import DataError, Failed, LoaderError, UsageError

T = TypeVar("T")
KINDS = {
    kind.__name__: kind for kind in (DataError, UsageError, Failed, LoaderError, ConnectionError)
}


def everywhere(decide: Callable[[], T]) -> T:
    """What rank 0 decides, on every rank."""
    box = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(failure: Exception | None) -> None:
    """Raise on every rank what failed on any: its own failure, else the first of the others.

    An error of KINDS is of that kind on every rank, another is a RuntimeError on the others.
    """
    told = gather(failure and (type(failure).__name__, str(failure)))
    if failure:
        raise failure
    for name, text in filter(None, told):
        raise KINDS.get(name, RuntimeError)(text)


def together(do: Callable[[], T]) -> T:
    """What `do` gives on this rank; what it raises on one rank is raised on all."""
    result, failure = None, None
    try:
        result = do()
    except Exception as error:  # the other ranks are to hear of it
        failure = error
    raise_together(failure)
    return result
