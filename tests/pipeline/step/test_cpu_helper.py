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

from pipeline.step import cpu_helper
from pipeline.step.cpu_helper import CPU_HELPER
from shards.errors import Failed


@pytest.fixture
def extensions(tmp_path, monkeypatch) -> Path:
    """Return a copy of the helper's folder, compiled but not marked so, which `start` uses."""
    if not cpu_helper.is_compiled():
        cpu_helper.compile_alone()
    compiled = cpu_helper.helper_folder()
    monkeypatch.setenv("M2F_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    shutil.copytree(compiled, cpu_helper.helper_folder())
    (cpu_helper.helper_folder() / "built").unlink()  # as if the build had not ended
    return cpu_helper.helper_folder() / CPU_HELPER


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


def test_checkouts_share_the_helper_of_a_writable_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("M2F_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    shared = cpu_helper.helper_folder()
    assert shared.is_relative_to(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert cpu_helper.helper_folder().is_relative_to(cpu_helper.CHECKOUT)
        shared.mkdir(parents=True)
        (shared / "built").touch()
        assert cpu_helper.helper_folder() == shared
        assert cpu_helper.is_compiled()
    monkeypatch.setenv("M2F_EXTENSIONS_DIR", str(tmp_path / "chosen"))
    assert cpu_helper.helper_folder() == tmp_path / "chosen" / shared.name


@pytest.mark.slow
def test_a_missing_compiler_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("M2F_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(Failed, match=r"CPU helper does not compile: .*; install a C"):
        cpu_helper.compile_alone()
