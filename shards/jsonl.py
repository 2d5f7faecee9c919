"""JSONL files: one JSON object per line, appended by processes that may be killed."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.files import open_own, parse_json, read_regular, whole_file

Row = dict[str, Any]
Fields = Mapping[str, type]  # the fields that every row of a file has, and their types


def append(path: Path, row: Row) -> None:
    """Append one row in one write. A last line that a crash cut short is terminated first."""
    with open_own(path) as file:
        is_cut = file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0
        is_cut = is_cut and file.read() != b"\n"
        file.write(b"\n" * is_cut + _line(row))


def read(path: Path, fields: Fields) -> tuple[list[Row], int]:
    """Return the rows of a file, and the number of lines that are not a row with these fields.

    Lines are cut short by a crash, or zeroed by a loss of power. A missing file has no lines, and
    blank lines do not count.

    Raises:
        UsageError: The file cannot be read, or is not a regular file.
    """
    try:
        lines = [line for line in read_regular(path).split(b"\n") if line.strip()]
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        fix = "move it away, and run the same command again"
        raise UsageError(error.strerror or str(error), where=path, fix=fix) from error
    found = [row for line in lines if (row := parse(line, fields)) is not None]
    return found, len(lines) - len(found)


def rows(path: Path, fields: Fields = {}) -> list[Row]:  # noqa: B006 (never changed)
    """Return the rows that `read` finds in a file."""
    return read(path, fields)[0]


def parse(line: bytes, fields: Fields) -> Row | None:
    """Return the row of a line; None if it is not a JSON object with these fields."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    fits = isinstance(row, dict) and all(type(row.get(name)) is fields[name] for name in fields)
    return row if fits else None


def write_rows(path: Path, content: Iterable[Row]) -> None:
    """Write a file of these rows, whole or not at all."""
    with whole_file(path) as file:
        file.writelines(map(_line, content))


def keep_rows(path: Path, fields: Fields, wanted: Callable[[Row], bool]) -> int:
    """Drop the rows that are not wanted, and lines that are not a row; return the number of these.

    A file that needs no change is not written.
    """
    found, unreadable = read(path, fields)
    kept = [row for row in found if wanted(row)]
    if unreadable or len(kept) < len(found):
        write_rows(path, kept)
    return unreadable


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
