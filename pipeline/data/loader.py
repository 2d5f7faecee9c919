"""The processes that prepare batches while the network trains, and the errors that end them.

Errors and warnings of a loader process are delivered as data with its batches. torch would turn
an error into the text of a traceback and lose its problem and exit code, and a warning would only
appear on the standard error of the process, which Ray does not show.
"""

import multiprocessing
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Collection, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from torch.utils.data import DataLoader, IterableDataset
from webdataset.pipeline import DataPipeline

from pipeline.data.batch import Batch
from shards.errors import LoaderError, M2FError, UsageError
from shards.parallel import exit_with_parent

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 4  # batches that every process keeps ready
POLL_S = 2  # largest delay until the death of a process is noticed

_ENLARGE = "enlarge it (docker run --shm-size=8g) or lower data.loader_workers"


class Delivery(NamedTuple):
    """One item in the queue of a loader process.

    Attributes:
        batch: The next batch; None if preparing it failed.
        error: The error that ended the stream; None otherwise.
        warnings: Texts and categories of the warnings since the last delivery.
    """

    batch: Batch | None
    error: Exception | None
    warnings: list[tuple[str, type[Warning]]]


def loader(
    pipeline: DataPipeline,
    workers: int,
    pin: bool = False,
    batch_bytes: int = 0,
    timeout_s: float = 120,
) -> Iterator[Batch]:
    """Run a pipeline in loader processes and yield its batches in order.

    Warnings that are raised in a loader process are raised again in this process.

    Args:
        pipeline: The stream of `train_stream`.
        workers: Number of loader processes; 0 runs the pipeline in this process.
        pin: Whether to copy the batches to pinned memory.
        batch_bytes: Approximate size of a batch.
        timeout_s: Seconds to wait for a batch.

    Raises:
        UsageError: Shared memory is too small for the batches that are kept ready.
        LoaderError: A process died, or no batch arrived for `timeout_s`.
        M2FError, OSError: The error that the pipeline raised.
    """
    if workers == 0:
        yield from DataLoader(_dataset(pipeline), batch_size=None, pin_memory=pin)
        return
    _check_shared_memory(workers * PREFETCH * batch_bytes)
    context = multiprocessing.get_context("forkserver")
    # the fork server imports this module once; loader processes start sooner and share its memory
    context.set_forkserver_preload(["pipeline.data.stream"])
    before = set(multiprocessing.active_children())
    deliveries = iter(DataLoader(
        _dataset(pipeline.compose(deliver)),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        prefetch_factor=PREFETCH,
        timeout=POLL_S,
        pin_memory=pin,
        worker_init_fn=_start_process,
    ))  # fmt: skip
    processes = set(multiprocessing.active_children()) - before
    while True:
        delivery = _next(deliveries, processes, timeout_s)
        for text, category in delivery.warnings:
            warnings.warn(text, category, stacklevel=2)
        if delivery.error:
            raise delivery.error
        assert delivery.batch is not None
        yield delivery.batch


def _dataset(pipeline: DataPipeline) -> IterableDataset:
    """Narrow the type: webdataset's pipeline derives from torch's class if torch is installed."""
    assert isinstance(pipeline, IterableDataset)
    return pipeline


def deliver(batches: Iterator[Batch]) -> Iterator[Delivery]:
    """Yield the deliveries of a loader process. An error becomes the last delivery."""
    raised: deque[tuple[str, type[Warning]]] = deque()  # threads that fetch shards append, too

    def record(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        # only built-in categories are certain to survive pickling
        is_builtin = category.__module__ == "builtins"
        raised.append((str(message), category if is_builtin else UserWarning))

    warnings.showwarning = record

    def pending() -> list[tuple[str, type[Warning]]]:
        return [raised.popleft() for _ in range(len(raised))]

    try:
        for batch in batches:
            _share(batch)
            yield Delivery(batch, None, pending())
    except (M2FError, OSError) as error:
        yield Delivery(None, error, pending())


def _share(batch: Batch) -> None:
    """Move a batch to shared memory.

    torch does this itself on the way into the queue, but there it drops the batch silently if
    /dev/shm is full, and the stream would wait for it until the timeout.
    """
    try:
        for tensor in tensors_in(batch):
            tensor.share_memory_()
    except RuntimeError as error:
        raise UsageError("it is full", where=SHARED_MEMORY, fix=_ENLARGE) from error


def tensors_in(part: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples."""
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, tuple):
        for inner in part:
            yield from tensors_in(inner)


def _next(
    deliveries: Iterator[Delivery], processes: Collection[BaseProcess], timeout_s: float
) -> Delivery:
    """Return the next delivery. Every POLL_S seconds, check that all processes are alive."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return next(deliveries)
        except RuntimeError as error:
            exit_codes = {p.exitcode for p in processes if p.exitcode is not None}
            if exit_codes:
                raise _death(min(exit_codes)) from error
            if not str(error).startswith("DataLoader timed out"):
                raise
            if time.monotonic() > deadline:
                raise LoaderError(
                    f"the {len(processes)} loader processes delivered no batch for {timeout_s:g} s",
                    fix="check whether the storage or a stage of data.stages hangs",
                ) from error


def _death(exit_code: int) -> LoaderError:
    """Return the error for a loader process that has ended with `exit_code`."""
    if exit_code == -signal.SIGBUS:
        what = f"a loader process was killed (SIGBUS) because {SHARED_MEMORY} is full"
        return LoaderError(what, fix=_ENLARGE)
    if exit_code == -signal.SIGKILL:
        return LoaderError(
            "a loader process was killed (SIGKILL)",
            fix="check whether the machine is out of memory",
        )
    cause = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return LoaderError(f"a loader process died ({cause})")


def _check_shared_memory(needed: int) -> None:
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise UsageError(
            f"{free >> 20} MiB are free, but the batches that are kept ready take "
            f"{needed >> 20} MiB",
            where=SHARED_MEMORY,
            fix=_ENLARGE,
        )


def _start_process(_: int) -> None:
    threading.Thread(target=exit_with_parent, daemon=True).start()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
