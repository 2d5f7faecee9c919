"""Loader processes that die, hang or find no room: errors with a name, in time."""

import re
import shutil
import time
from collections import namedtuple
from itertools import islice

import pytest
import torch

from pipeline.data import loader as loader_module
from pipeline.data.loader import POLL_S, LoaderError, loader
from pipeline.data.split import BatchSplit
from pipeline.data.stream import DataSettings, train_stream
from shards.errors import UsageError
from tests.pipeline.data.test_stages import HERE

START_S = 30  # for a process to start, on a machine that others use


def run(store, stage: str | None, timeout_s: float = 120, count: int = 4, **more) -> list:
    settings = DataSettings(crop=64, stages=[f"{HERE}:{stage}"] if stage else [])
    stream = train_stream(settings, store, "panoptic", 5, 0, BatchSplit(8, 4))
    return list(islice(loader(stream, 2, timeout_s=timeout_s, **more), count))


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("die", r"a loader process was killed \(SIGKILL\): .* out of memory"),
        ("no_room", r"no room in /dev/shm; .*--shm-size=.*data\.loader_workers"),
    ],
)
def test_a_process_that_dies_is_noticed_long_before_the_timeout(train_set, stage, text):
    started = time.monotonic()
    with pytest.raises(LoaderError, match=text):
        run(train_set, stage)
    assert time.monotonic() - started < START_S + 4 * POLL_S


def test_processes_that_hang_are_an_error_at_the_timeout(train_set):
    with pytest.raises(LoaderError, match=r"2 loader processes gave no batch for 3 s: .*hangs"):
        run(train_set, "hang", timeout_s=3)


def test_shared_memory_that_is_too_small_is_found_out_before_anything_starts(
    train_set, monkeypatch
):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64 << 20))
    with pytest.raises(UsageError, match=r"64 MiB free, .* take 80 MiB; .*--shm-size"):
        run(train_set, None, batch_bytes=10 << 20)
    assert len(run(train_set, None, count=1, batch_bytes=8 << 20)) == 1


def test_a_batch_without_room_is_an_error_and_not_lost(train_set, monkeypatch):
    """Torch's own queue drops it with a message on stderr, and the stream would hang."""
    (batch,) = run(train_set, None, count=1)

    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(UsageError, match="/dev/shm is full: make it larger"):
        loader_module._shared(batch)


def test_batches_come_in_shared_memory(train_set):
    """They are written there once and not copied again on their way."""
    (batch,) = run(train_set, None, count=1)
    assert all(part.is_shared() for part in batch if isinstance(part, torch.Tensor))
    assert re.fullmatch(r"\d+", batch.keys[0])


@pytest.mark.gpu
def test_batches_are_pinned_and_copied_without_waiting(train_set):
    (batch,) = run(train_set, None, count=1, pin=True)
    assert all(part.is_pinned() for part in batch if isinstance(part, torch.Tensor))
    there = batch.to(torch.device("cuda"))
    assert torch.equal(there.images.cpu(), batch.images)
    assert there.keys == batch.keys
