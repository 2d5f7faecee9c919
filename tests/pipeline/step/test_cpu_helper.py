"""DeepSpeed's helper for CPU collectives: its lock, and what a killed build leaves behind."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.step.cpu_helper import CPU_HELPER, DEFAULT_FOLDER


@pytest.fixture
def extensions(tmp_path, monkeypatch) -> Path:
    """Return a copy of the folder of the compiled helper, which `start` uses."""
    if not any(_extensions().glob("*/built")):
        assert start().wait(timeout=300) == 0
    shutil.copytree(_extensions(), tmp_path / "extensions")
    monkeypatch.setenv("M2F_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    (folder,) = (tmp_path / "extensions").glob(f"*/{CPU_HELPER}")
    return folder


def _extensions() -> Path:
    return Path(os.environ.get("M2F_EXTENSIONS_DIR", DEFAULT_FOLDER))


def start() -> subprocess.Popen:
    code = "from pipeline.step.cpu_helper import load_cpu_helper as load; load(); load()"
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.mark.slow
def test_a_lock_that_a_killed_build_left_is_no_obstacle(extensions):
    (extensions / "lock").touch()
    library = extensions / f"{CPU_HELPER}.so"
    compiled = library.stat().st_mtime_ns
    assert start().wait(timeout=60) == 0
    assert not (extensions / "lock").exists()
    assert library.stat().st_mtime_ns == compiled


@pytest.mark.slow
def test_starts_wait_for_a_living_builder_and_not_for_a_dead_one(extensions):
    """The kernel releases the lock when its holder dies."""
    (extensions / "lock").touch()
    path = extensions.parent / "build.lock"
    hold = f"import fcntl, time; f = open({str(path)!r}, 'w'); fcntl.flock(f, 2); time.sleep(600)"
    builder = subprocess.Popen([sys.executable, "-c", hold])
    try:
        wait_until(lambda: is_locked(path))
        waiting = start()
        time.sleep(8)  # twice what a start takes
        assert waiting.poll() is None
        assert (extensions / "lock").exists()
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    assert waiting.wait(timeout=60) == 0
    assert not (extensions / "lock").exists()


def is_locked(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
