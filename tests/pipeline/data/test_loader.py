"""Loader processes that fail, die, hang, or run out of memory end in a named error, in time."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from itertools import islice
from pathlib import Path

import pytest
import torch

from pipeline.data.loader import POLL_S, deliver, loader, tensors_in
from pipeline.data.split import BatchSplit
from pipeline.data.stream import DataSettings, train_stream
from shards.errors import LoaderError, UsageError
from tests.pipeline.data.test_stages import HERE

START_S = 30  # allowed for the start of a process on a busy machine


READER = """
import os, sys
from pipeline.data.store import Store
from tests.pipeline.data.test_loader import run

os.environ["M2F_TEST_FOLDER"] = sys.argv[2]
run(Store(sys.argv[1]), "hang_alone")
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def run(store, stage: str | None, timeout_s: float = 120, count: int = 4, **more) -> list:
    """Return the first batches of a stream through two loader processes and a stage."""
    settings = DataSettings(crop=64, stages=[f"{HERE}:{stage}"] if stage else [])
    stream = train_stream(settings, [store], "panoptic", 5, 0, BatchSplit(8, 4))
    return list(islice(loader(stream, 2, timeout_s=timeout_s, **more), count))


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("die", r"a loader process was killed \(SIGKILL\); .* out of memory"),
        ("no_room", r"SIGBUS\) because /dev/shm is full; .*--shm-size=.*data\.loader_workers"),
    ],
)
def test_a_process_that_dies_is_noticed_long_before_the_timeout(train_set, stage, text):
    started = time.monotonic()
    with pytest.raises(LoaderError, match=text):
        run(train_set, stage)
    assert time.monotonic() - started < START_S + 4 * POLL_S


def test_processes_that_hang_are_an_error_at_the_timeout(train_set):
    with pytest.raises(LoaderError, match=r"processes delivered no batch for 3 s; .*hangs"):
        run(train_set, "hang", timeout_s=3)


def test_processes_end_with_the_one_that_reads_them_even_if_they_hang(train_set, tmp_path):
    """No Ray watches under torchrun, and SIGKILL leaves no time to end them."""
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, train_set.location, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    processes = [int(path.name) for path in tmp_path.iterdir()]
    reader.kill()
    reader.wait()
    wait_until(lambda: not any(map(is_alive, processes)))


def test_an_error_in_a_process_keeps_its_parts(train_set):
    with pytest.raises(UsageError) as caught:
        run(train_set, "broken")
    assert caught.value.exit_code == 2
    assert HERE in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_warning_in_a_process_is_raised_again_in_the_parent(train_set):
    with pytest.warns(UserWarning, match="this image is dark"):
        run(train_set, "warn")


def test_shared_memory_that_is_too_small_is_refused_before_anything_starts(train_set, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64 << 20))
    with pytest.raises(UsageError, match=r"/dev/shm: 64 MiB are free, .* 80 MiB; .*--shm-size"):
        run(train_set, None, batch_bytes=10 << 20)
    assert len(run(train_set, None, count=1, batch_bytes=8 << 20)) == 1


def test_a_batch_without_room_is_an_error_and_not_lost(train_set, monkeypatch):
    """torch's own queue would drop it with a message on stderr, and the stream would hang."""
    (batch,) = run(train_set, None, count=1)

    def full(_):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    (delivery,) = deliver(iter([batch]))
    assert isinstance(delivery.error, UsageError)
    assert str(delivery.error).startswith("/dev/shm: it is full; enlarge it")


def test_batches_arrive_in_shared_memory(train_set):
    """They are written there once and are not copied again on their way."""
    (batch,) = run(train_set, None, count=1)
    assert all(tensor.is_shared() for tensor in tensors_in(batch))
    assert re.fullmatch(r"\d+", batch.keys[0])


@pytest.mark.gpu
def test_batches_are_pinned_and_copied_without_waiting(train_set):
    (batch,) = run(train_set, None, count=1, pin=True)
    assert all(tensor.is_pinned() for tensor in tensors_in(batch))
    on_gpu = batch.to(torch.device("cuda"))
    assert torch.equal(on_gpu.images.cpu(), batch.images)
    assert on_gpu.keys == batch.keys
