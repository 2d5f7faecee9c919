"""Private folders with short paths, and what killed processes left of them."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shards import scratch
from shards.errors import UsageError
from shards.scratch import PREFIX, private_folder


@pytest.fixture
def base(monkeypatch):
    """Yield a short folder that stands for the machine's folders for temporary files."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(scratch, "LOCAL_FOLDERS", (folder,))
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_folder_is_private_and_removed(base):
    with private_folder() as folder:
        assert folder.parent == base
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 80, "missing"])
def test_a_long_or_missing_tmpdir_is_not_used(base, monkeypatch, name):
    usual = base / name
    if name != "missing":
        usual.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(usual))
    with private_folder() as folder:
        assert folder.parent == base
        assert len(os.fsencode(folder)) <= scratch.MAX_BYTES


def test_without_any_folder_the_reasons_are_named(base, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(base / ("x" * 80)))
    monkeypatch.setattr(scratch, "LOCAL_FOLDERS", (str(base / "missing"),))
    with pytest.raises(UsageError) as caught, private_folder():
        pass
    text = str(caught.value)
    assert text.startswith("TMPDIR: no temporary folder can be made: ")
    assert "xxx (too long for the paths of sockets)" in text
    assert "missing (No such file or directory)" in text


def test_folders_of_killed_processes_are_removed_and_those_in_use_stay(base):
    names = [f"{PREFIX}{letter * 8}" for letter in "abc"] + [f"{PREFIX}other", "else"]
    for name in names:
        (base / name / "logs").mkdir(parents=True)
        os.utime(base / name, (0, 0))
    (base / f"{PREFIX}link1234").symlink_to(base / "else")
    os.utime(base / names[1])  # new: its process may not have locked it yet
    in_use = os.open(base / names[2], os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_EX)
    with private_folder() as folder:
        left = {path.name for path in base.iterdir()} - {folder.name}
    os.close(in_use)
    assert left == {*names[1:], f"{PREFIX}link1234"}
    assert (base / "else/logs").is_dir()


def test_semaphores_of_killed_processes_are_removed(base):
    """Their resource tracker would do it, but Ray kills it, too."""
    with private_folder() as folder:
        code = (
            "import multiprocessing, os, sys; from pathlib import Path\n"
            "from shards.scratch import name_semaphores\n"
            "name_semaphores(Path(sys.argv[1]))\n"
            "lock = multiprocessing.get_context('spawn').Lock()\n"
            "for pid in (multiprocessing.resource_tracker._resource_tracker._pid, os.getpid()):\n"
            "    os.kill(pid, 9)"
        )
        subprocess.run([sys.executable, "-c", code, folder], check=False)
        assert len(list(scratch.SHARED_MEMORY.glob(f"sem.{folder.name}-*"))) == 1
    assert not list(scratch.SHARED_MEMORY.glob(f"sem.{folder.name}-*"))
