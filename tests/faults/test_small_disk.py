"""A run on a real disk of 4 MiB that fills while it is trained, or is read-only at a start."""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.run import checkpoint, eventlog, events
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.track import METRICS
from shards.files import whole_file
from shards.jsonl import rows
from tests.faults.test_kill import alive
from tests.jobs import small
from tests.pipeline.data.test_stages import HERE

pytestmark = pytest.mark.slow

STAGES = f"data.stages=[{HERE}:gated,{HERE}:recorded]"


class SmallDisk:
    """A disk that only the commands started here see, and a gate in front of each training step.

    Args:
        folder: Holds what is not on the disk.
        pid: A process of the commands' mount namespace.
        command: The command that trains.
    """

    def __init__(self, folder: Path, pid: int, command: list[str]):
        self._folder, self._pid = folder, pid
        self._words = [*command, f"runs={folder / 'runs'}", STAGES]
        self.runs = Path(f"/proc/{pid}/root{folder}/runs")
        self.run = self.runs / small.NAME
        self._filler = self.runs / "filler"

    def mount(self, *options: str) -> None:
        command = ["nsenter", f"--target={self._pid}", "--mount", "mount", *options]
        subprocess.run([*command, self._folder / "runs"], check=True)

    def start(self) -> subprocess.Popen:
        command = ["nsenter", f"--target={self._pid}", "--mount", "--"]
        variables = {
            "M2F_TEST_GATE": str(self._folder / "gate"),
            "M2F_TEST_FOLDER": str(self._folder / "seen"),
        }
        return subprocess.Popen(
            [*command, sys.executable, "-m", "jobs", *self._words],
            cwd=self._folder,
            env=small.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def open_gate(self, step: int) -> None:
        """Let the run take the steps up to one."""
        with whole_file(self._folder / "gate") as file:
            file.write(str(step * small.GLOBAL_BATCH).encode())

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def empty(self) -> None:
        self._filler.unlink()

    def has_taken(self, step: int) -> bool:
        """Return whether the run has read a sample of the step after one."""
        seen = [path.read_text().splitlines() for path in (self._folder / "seen").iterdir()]
        positions = [int(line.split()[0]) for lines in seen for line in lines]
        return max(positions, default=0) >= step * small.GLOBAL_BATCH

    def saved(self) -> list[int]:
        return [checkpoint.step_of(path) for path in checkpoint.committed(self.run / CHECKPOINTS)]


@pytest.fixture
def disk(tmp_path, photographs) -> Iterator[SmallDisk]:
    for name in ("runs", "seen"):
        (tmp_path / name).mkdir()
    command = ["unshare", "--mount", "sh", "-c", "echo; exec sleep infinity"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"\n":
            pytest.skip("mount")
        disk = SmallDisk(tmp_path, holder.pid, small.words(photographs))
        disk.mount("-t", "tmpfs", "-o", "size=4m", "none")
        yield disk
        holder.kill()


def wait(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    until = time.monotonic() + small.TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


def assert_undisturbed(disk: SmallDisk, base: Path) -> None:
    undisturbed, _ = small.trained(base)
    steps = [row["step"] for row in rows(disk.run / METRICS) if "loss" in row]
    assert steps == list(range(1, small.STEPS + 1))
    small.assert_same_state(small.last_state(disk.run), small.last_state(undisturbed))


def test_a_disk_that_is_full_for_some_steps_costs_only_their_checkpoints(disk, tmp_path_factory):
    disk.open_gate(5)
    process = disk.start()
    wait(process, lambda: 4 in disk.saved())
    disk.fill()
    disk.open_gate(9)
    wait(process, lambda: disk.has_taken(8))
    assert max(disk.saved()) == 4
    disk.empty()
    disk.open_gate(small.STEPS + 1)
    outcome = small.finish(process)
    assert outcome.code == 0, outcome.err
    failed = eventlog.read_kind(disk.run, events.CheckpointFailed)
    assert {event.step for event in failed} >= {6}
    assert all(os.strerror(errno.ENOSPC) in event.error for event in failed)
    assert disk.saved()[0] == small.STEPS
    assert_undisturbed(disk, tmp_path_factory.getbasetemp())


def test_a_read_only_disk_refuses_a_run_and_changes_nothing(disk, tmp_path_factory):
    disk.open_gate(5)
    process = disk.start()
    wait(process, lambda: 4 in disk.saved())
    process.kill()
    process.communicate()
    (start,) = eventlog.read_kind(disk.run, events.Start)
    until = time.monotonic() + small.TIMEOUT_S
    while any(map(alive, start.process_ids)) and time.monotonic() < until:
        time.sleep(0.1)

    disk.mount("-o", "remount,ro")
    outcome = small.finish(disk.start())
    assert outcome.code == 2
    assert os.strerror(errno.EROFS) in small.complaint(outcome)
    disk.mount("-o", "remount,rw")
    disk.open_gate(small.STEPS + 1)
    outcome = small.finish(disk.start())
    assert outcome.code == 0, outcome.err
    assert "resuming from the checkpoint of step 4" in outcome.out
    assert_undisturbed(disk, tmp_path_factory.getbasetemp())
