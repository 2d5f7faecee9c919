"""Files written whole or not at all, locks among processes, and JSONL files."""

import errno
import json
import multiprocessing
from pathlib import Path

import pytest

from shards.errors import Failed, UsageError
from shards.files import disk_errors, file_lock, whole_file, write_json
from shards.jsonl import append, keep_rows, rows


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
