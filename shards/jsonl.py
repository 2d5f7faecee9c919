"""JSONL files: one JSON object per line, appended by processes that may be killed."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shards.files import whole_file

Row = dict[str, Any]


def append(path: Path, row: Row) -> None:
    """Append one row in one write. A last line that a crash cut short is terminated first."""
    with path.open("ab+") as file:
        is_cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
        file.write(b"\n" * is_cut + _line(row))


def rows(path: Path) -> list[Row]:
    """Return the complete rows of a file; none if it is missing. Lines cut short are skipped."""
    complete = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            complete.append(json.loads(line))
    return complete


def write_rows(path: Path, content: Iterable[Row]) -> None:
    """Write a file of these rows, whole or not at all."""
    with whole_file(path) as file:
        file.writelines(map(_line, content))


def keep_rows(path: Path, wanted: Callable[[Row], bool]) -> None:
    """Drop the rows that are not wanted, if the file exists."""
    if path.exists():
        write_rows(path, filter(wanted, rows(path)))


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
