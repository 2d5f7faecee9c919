"""What the ranks of a process group exchange, so that they continue or stop together.

Every function also works in a single process without a process group.
"""

import functools
import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.backends import cudnn

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def rank_device() -> torch.device:
    """Return this rank's device, its GPU or otherwise the CPU, and prepare torch for training.

    The GPU becomes torch's current one. Products of float32 matrices use TF32, as convolutions do
    by default, and cuDNN searches for the fastest convolutions, because all images have one size.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    cudnn.benchmark = True
    return device


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def sum_on_hosts(tensor: Tensor) -> Tensor:
    """Sum a tensor on the CPU over all ranks, in place, and return it; no rank waits for its GPU.

    NCCL sums tensors on a GPU only, so its groups have a second one, of gloo, beside them.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        world = dist.group.WORLD
        assert world is not None
        dist.all_reduce(tensor, group=_host_group(world))
    return tensor


@functools.lru_cache(maxsize=1)
def _host_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return a group of the ranks of `world` that sums tensors on the CPU."""
    if dist.get_backend(world) != "nccl":
        return world
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks, in the order of the ranks, on every rank."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def from_rank_0(compute: Callable[[], T]) -> T:
    """Call `compute` on rank 0 only, and return its result on every rank.

    Raises:
        Exception: What `compute` raises on rank 0, on every rank.
    """
    rank, world = rank_and_world()
    if world == 1:
        return compute()
    result: Any = None
    error: Exception | None = None
    if rank == 0:
        try:
            result = compute()
        except Exception as raised:
            error = raised
    box = [result, error and _picklable(error)]
    dist.broadcast_object_list(box, src=0)
    if error or box[1]:
        raise error or box[1]
    return box[0]


def raise_on_all_ranks(error: Exception | None) -> None:
    """Exchange the errors of all ranks and raise on every rank if any rank has one.

    Args:
        error: The error of this rank; None if it has none.

    Raises:
        Exception: This rank's own error; otherwise a copy of the error of the first rank that has
            one, of the same type and text.
    """
    errors = all_gather(error and _picklable(error))
    if error:
        raise error
    for other in errors:
        if other:
            raise other


def call_on_all_ranks(function: Callable[[], T]) -> T:
    """Call `function` on every rank and return this rank's result.

    Raises:
        Exception: What `function` raises on any rank, on every rank.
    """
    try:
        result = function()
    except Exception as error:
        raise_on_all_ranks(error)
        raise
    raise_on_all_ranks(None)
    return result


def is_lost_peer(error: BaseException) -> bool:
    """Return whether a collective failed because the process of another rank is gone."""
    text = str(error)
    is_collective = isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
    return is_collective and ("peer" in text or "remote process" in text)


def _picklable(error: Exception) -> Exception:
    """Return the error if it survives pickling, otherwise a RuntimeError with its type and text.

    An exception whose constructor takes other arguments than `args` is pickled without complaint
    and fails on the rank that unpickles it, which would leave the other ranks waiting.
    """
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy if isinstance(copy, Exception) else RuntimeError(str(error))
