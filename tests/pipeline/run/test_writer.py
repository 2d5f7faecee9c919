"""The process that writes checkpoints is killed at every call that changes the file system."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.run import checkpoint
from pipeline.run.checkpoint import COMMITTED, MANIFEST, STATE, TRAINER_STATE, name_of
from pipeline.run.commit import BLOCK
from pipeline.run.snapshot import Snapshot
from pipeline.run.writer import Writer
from tests.pipeline.runs import trainer_state

# The names that a machine does not have are ignored.
CALLS = ",".join(
    f"?{name}"
    for name in (
        *("open", "openat", "creat", "write", "writev", "pwrite64", "pwritev", "sendfile"),
        *("copy_file_range", "fallocate", "ftruncate", "truncate", "fsync", "fdatasync", "sync"),
        *("mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink"),
        *("unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "utimensat"),
    )
)
OLD, BEFORE, NEW, NEXT = (name_of(step, 1) for step in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    """Return a state of more than one block."""
    state = {"model.weight": torch.randn(BLOCK // 4 + 100)}
    snapshot = Snapshot(state)
    snapshot.fill(state.items())
    return snapshot


class Checkpoints:
    """A folder with two whole checkpoints, and the process that replaces the older one.

    Args:
        root: The folder.
        snapshot: The state.
    """

    def __init__(self, root: Path, snapshot: Snapshot):
        self.root, self.snapshot = root, snapshot
        self.writer = Writer(snapshot.memory)

    def write(self, name: str, step: int) -> OSError | None:
        self.writer.write(self.root / name, self.snapshot.size, trainer_state(step).to_text())
        reply = self.writer.reply(wait=True)
        assert reply is not None
        return reply.error

    def replace(self) -> None:
        """Write the new checkpoint and remove the old one, as far as the process lives."""
        try:
            if self.write(NEW, 3) is None:
                self.writer.remove([self.root / OLD])
                self.writer.reply(wait=True)
        except ChildProcessError:
            pass

    def trace(self, log: Path, *options: str) -> subprocess.Popen[str]:
        """Trace the calls of the process from now on."""
        command = ["strace", "-y", "-s", "0", "-o", log, "-e", f"trace={CALLS}"]
        command += [*options, "-p", str(self.writer.pid)]
        if not shutil.which("strace"):
            pytest.skip("strace")
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        if "Operation not permitted" in (line := strace.stderr.readline()):
            pytest.skip("strace")
        assert "attached" in line
        return strace


def traced(checkpoints: Checkpoints, log: Path, *options: str) -> list[str]:
    """Replace the old checkpoint, and return the calls."""
    strace = checkpoints.trace(log, *options)
    checkpoints.replace()
    checkpoints.writer.close()
    strace.communicate(timeout=60)
    lines = log.read_text().splitlines()
    return [line for line in lines if re.match(r"\w+\(", line)]


def called(line: str) -> str:
    return line.partition("(")[0]


def refill(root: Path, template: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)


@pytest.mark.slow
def test_a_kill_at_any_call_leaves_the_newest_checkpoint_that_is_whole(tmp_path, snapshot):
    """Each call is killed before it is done. The next process then writes another checkpoint."""
    template, root = tmp_path / "template", tmp_path / "checkpoints"
    first = Checkpoints(template, snapshot)
    assert [first.write(OLD, 1), first.write(BEFORE, 2)] == [None, None]
    refill(root, template)
    first.root = root
    calls = traced(first, tmp_path / "log")
    assert len(calls) > 30
    outcomes = []
    following = Checkpoints(root, snapshot)
    for number in range(1, len(calls) + 1):
        checkpoints, following = following, Checkpoints(root, snapshot)
        assert checkpoints.write(NEXT, 4) is None  # its first request also imports everything
        refill(root, template)
        name = called(calls[number - 1])  # strace counts the calls of each name
        count = list(map(called, calls[:number])).count(name)
        inject = f"inject={name}:signal=KILL:when={count}"
        done = traced(checkpoints, tmp_path / "log", "-e", inject)
        assert len(done) == number, (number, done[-1], calls[number - 1])
        is_whole = (root / NEW / COMMITTED).exists()
        reported: list[str] = []
        newest = checkpoint.newest(root, reported.append)
        assert newest is not None
        assert (newest.name, reported) == (NEW if is_whole else BEFORE, [])
        for folder in checkpoint.committed(root):
            assert checkpoint.damage(folder) is None
        if not is_whole:
            assert (root / OLD / COMMITTED).exists()  # nothing was removed
        outcomes.append(is_whole)
    assert outcomes == sorted(outcomes)
    following.writer.close()


def index_of(calls: list[str], pattern: str) -> list[int]:
    """Return the numbers of the calls that match a pattern; there is at least one."""
    found = [number for number, call in enumerate(calls) if re.match(pattern, call)]
    assert found, pattern
    return found


def test_a_loss_of_power_leaves_the_newest_checkpoint_that_is_whole(tmp_path, snapshot):
    """What is synced before a call is on the disk if its effect is.

    The files, their names, and their hashes are synced before COMMITTED is created. The new
    checkpoint, with its name in the folder above, is synced before anything of the old one is
    removed, whose mark goes first.
    """
    root = tmp_path / "checkpoints"
    checkpoints = Checkpoints(root, snapshot)
    assert [checkpoints.write(OLD, 1), checkpoints.write(BEFORE, 2)] == [None, None]
    calls = traced(checkpoints, tmp_path / "log")
    new, old = (re.escape(str(root / name)) for name in (NEW, OLD))
    (mark,) = index_of(calls, rf'openat\(.*"{new}/{COMMITTED}", .*O_CREAT')
    for name in (STATE, TRAINER_STATE, MANIFEST):
        written = index_of(calls, rf"write\(\d+<{new}/{name}>")
        (synced,) = index_of(calls, rf"fsync\(\d+<{new}/{name}>")
        assert written[-1] < synced < mark
    before, after = index_of(calls, rf"fsync\(\d+<{new}>\)")
    assert before < mark < after
    above = index_of(calls, rf"fsync\(\d+<{re.escape(str(root))}>\)")
    removed = index_of(calls, rf'(unlink|unlinkat|rmdir)\(.*({old}|"{STATE}"|"{COMMITTED}")')
    assert mark < above[-1] < removed[0]
    (withdrawn,) = index_of(calls, rf"fsync\(\d+<{old}>\)")
    assert COMMITTED in calls[removed[0]]
    assert removed[0] < withdrawn < removed[1]


PARENT = """
import os, time
from pipeline.run.writer import Writer
writer = Writer(os.memfd_create("state"))
print(writer.pid, flush=True)
time.sleep(600)
"""


def test_the_process_ends_with_its_parent_even_in_the_middle_of_a_write():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert parent.stdout is not None
    writer = int(parent.stdout.readline())
    deadline = time.monotonic() + 60
    while "pipeline.run.writer" not in Path(f"/proc/{writer}/cmdline").read_text():
        assert time.monotonic() < deadline
    time.sleep(0.5)
    os.kill(writer, signal.SIGSTOP)  # so that it cannot see the end of its pipe
    parent.kill()
    parent.wait()
    while is_running(writer):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
