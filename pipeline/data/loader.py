"""The processes that run a stream ahead of the network, and what can go wrong with them."""

import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from pipeline.data.batch import Batch
from shards.errors import UsageError

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 4  # batches that every process keeps ready
POLL_S = 2  # how soon the death of a process is noticed


class LoaderError(RuntimeError):
    """A loader process has died, or none gives a batch. Restarting from a checkpoint may help."""


def loader(
    pipeline: wds.DataPipeline,
    workers: int,
    pin: bool = False,
    batch_bytes: int = 0,
    timeout_s: float = 120,
) -> Iterator[Batch]:
    """Run the pipeline in `workers` processes (0: in this one); batches come in order.

    Raises UsageError where shared memory cannot hold the batches of `batch_bytes` that are kept
    ready, LoaderError if a process dies or if no batch comes for `timeout_s`.
    """
    if workers == 0:
        yield from DataLoader(pipeline, batch_size=None, pin_memory=pin)
        return
    _check_shared_memory(workers * PREFETCH * batch_bytes)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pipeline.data.stream"]
    )  # processes start sooner and share its pages
    before = set(multiprocessing.active_children())
    batches = iter(DataLoader(
        pipeline.compose(wds.map(_shared)),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        prefetch_factor=PREFETCH,
        timeout=POLL_S,
        pin_memory=pin,
        worker_init_fn=_start_worker,
    ))  # fmt: skip
    processes = set(multiprocessing.active_children()) - before
    while True:
        yield _next(batches, processes, time.monotonic() + timeout_s, timeout_s)


def _shared(batch: Batch) -> Batch:
    """The batch in shared memory. Where torch does this itself, a batch without room is lost."""
    try:
        for part in batch:
            if isinstance(part, torch.Tensor):
                part.share_memory_()
    except RuntimeError as error:
        raise UsageError(f"{SHARED_MEMORY} is full: {_MORE_ROOM}") from error
    return batch


def _next(batches: Iterator[Batch], processes: set, deadline: float, timeout_s: float) -> Batch:
    while True:
        try:
            return next(batches)
        except RuntimeError as error:
            ends = {process.exitcode for process in processes} - {None}
            if ends:
                raise LoaderError(_obituary(ends)) from error
            if not str(error).startswith("DataLoader timed out"):
                raise
            if time.monotonic() > deadline:
                raise LoaderError(
                    f"the {len(processes)} loader processes gave no batch for {timeout_s:g} s: "
                    "the storage or a stage of data.stages hangs"
                ) from error


def _obituary(ends: set[int]) -> str:
    """What the exit codes of dead processes say."""
    end = min(ends)
    if end == -signal.SIGBUS:
        return f"a loader process found no room in {SHARED_MEMORY}; {_MORE_ROOM}"
    if end == -signal.SIGKILL:
        return "a loader process was killed (SIGKILL): perhaps the machine is out of memory"
    cause = signal.Signals(-end).name if end < 0 else f"exit code {end}"
    return f"a loader process died ({cause})"


_MORE_ROOM = "make it larger (docker run --shm-size=8g) or lower data.loader_workers"


def _check_shared_memory(needed: int) -> None:
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise UsageError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, batches that are kept ready take "
            f"{needed >> 20} MiB; {_MORE_ROOM}"
        )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
