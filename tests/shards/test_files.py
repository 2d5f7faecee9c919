"""Files written whole or not at all, locks among processes, and JSONL files."""

import errno
import fcntl
import json
import multiprocessing
import os
import warnings
from pathlib import Path

import pytest

from shards import locks
from shards.errors import Failed, UsageError
from shards.files import disk_errors, whole_file, write_json
from shards.jsonl import append, keep_rows, rows
from shards.locks import file_lock


def hold(path: Path) -> bool:
    """Return whether another process can take the lock."""
    with file_lock(path, wait=False) as held:
        return held


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "a/x.json", {"n": 1})
    with pytest.raises(TypeError), whole_file(tmp_path / "a/x.json") as file:
        file.writelines([b"half", None])
    assert json.loads((tmp_path / "a/x.json").read_text()) == {"n": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    path = tmp_path / "locks/one"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with file_lock(path) as held:
            assert held
            assert not pool.apply(hold, (path,))
        assert pool.apply(hold, (path,))


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_served_by_a_local_one(tmp_path, monkeypatch, code):
    """Two names of one folder are one lock."""
    shared, local = tmp_path / "shared", tmp_path / "local"
    for folder in (shared, local):
        folder.mkdir()
    (tmp_path / "alias").symlink_to(shared)
    flock = fcntl.flock

    def refusing(file, operation):
        if Path(f"/proc/self/fd/{file.fileno()}").resolve().is_relative_to(shared):
            raise OSError(code, os.strerror(code))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", refusing)
    monkeypatch.setattr(locks, "LOCAL_FOLDERS", (str(tmp_path / "missing"), str(local)))
    with warnings.catch_warnings(record=True) as told, file_lock(shared / "lock"):
        assert not hold(tmp_path / "alias/lock")
        assert hold(shared / "other")
        assert f"the file system of {shared}/lock has no locks" in str(told[0].message)
    with pytest.warns(UserWarning, match="has no locks"):
        assert hold(shared / "lock")
    assert [path.stat().st_mode & 0o777 for path in local.iterdir()] == [0o700]
    monkeypatch.setattr(locks, "LOCAL_FOLDERS", (str(tmp_path / "missing"),))
    refused = pytest.raises(UsageError, match="shared/lock: the file system has no locks")
    with warnings.catch_warnings(record=True), refused:
        hold(shared / "lock")


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (errno.ENOSPC, Failed, r"^out: the disk is full; free space"),
        (errno.EACCES, UsageError, r"^out/x: Permission denied; fix it"),
    ],
)
def test_errors_of_the_disk_are_translated(code, kind, text):
    with pytest.raises(kind, match=text), disk_errors(Path("out")):
        raise OSError(code, "Permission denied", "out/x")


def test_rows_are_kept_by_a_condition_and_cut_lines_are_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert keep_rows(path, {}, lambda row: True) == 0
    assert not path.exists()
    for n in range(4):
        append(path, {"n": n})
    with path.open("a") as file:
        file.write('{"n": 4')
    assert keep_rows(path, {"n": int}, lambda row: row["n"] != 1) == 1
    assert rows(path) == [{"n": 0}, {"n": 2}, {"n": 3}]
