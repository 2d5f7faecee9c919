"""The file events.jsonl of a run: any process of the run appends to it, and several read it."""

import os
import threading
from pathlib import Path
from typing import TypeVar

from model.settings import SettingError
from pipeline.distributed import rank_and_world
from pipeline.run.events import KIND_OF_NAME, Event, Warned
from shards import jsonl
from shards.files import open_regular

EVENTS = "events.jsonl"
FIELDS = {"event": str}
Kind = TypeVar("Kind", bound=Event)
_waiting: dict[Path, list[jsonl.Row]] = {}  # rows of this process that the disk has refused
_lock = threading.RLock()


def append(folder: Path, event: Event) -> None:
    """Append an event to the events.jsonl of a run folder. Any process of the run may do so."""
    append_row(folder / EVENTS, event.to_json())


def append_row(path: Path, row: jsonl.Row) -> None:
    """Append a row to a record of a run.

    A full disk does not end a run: what it refuses waits in memory until a later row is written.
    """
    with _lock:
        _waiting.setdefault(path, []).append(row)
        for refused in list(_waiting):
            _write_waiting(refused)


def _write_waiting(path: Path) -> None:
    waiting = _waiting[path]
    try:
        while waiting:
            jsonl.append(path, waiting[0])
            waiting.pop(0)
        del _waiting[path]
    except OSError as error:
        if len(waiting) == 1:  # the first that is refused
            text = f"{path.name} cannot be written ({error}); its rows wait in memory"
            warned = Warned(rank=rank_and_world()[0], category="OSError", text=text)
            _waiting.setdefault(path.parent / EVENTS, []).append(warned.to_json())


def read(folder: Path) -> list[Event]:
    """Return the events of a run, without the lines that cannot be read or of an unknown kind."""
    return [event for row in jsonl.rows(folder / EVENTS, FIELDS) if (event := _event(row))]


def unreadable(folder: Path) -> int:
    """Return the number of lines that cannot be read; those of an unknown kind do not count."""
    return jsonl.read(folder / EVENTS, FIELDS)[1]


def read_kind(folder: Path, kind: type[Kind]) -> list[Kind]:
    """Return the events of one kind."""
    return [event for event in read(folder) if isinstance(event, kind)]


class Tail:
    """Reads the events that are appended to the events.jsonl of a run from now on."""

    def __init__(self, folder: Path):
        self._path = folder / EVENTS
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def read(self) -> list[Event]:
        """Return the events that were completed since the last call.

        There are none while the file is missing or cannot be read.
        """
        try:
            with open_regular(self._path) as file:
                # Someone may have cut the file.
                self._offset = min(self._offset, file.seek(0, os.SEEK_END))
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._offset += len(whole + newline)
        rows = (jsonl.parse(line, FIELDS) for line in whole.split(b"\n"))
        return [event for row in rows if row and (event := _event(row))]


def _event(row: jsonl.Row) -> Event | None:
    try:
        kind = KIND_OF_NAME.get(row["event"])
        return kind.from_json(row) if kind else None
    except (TypeError, KeyError, SettingError):  # a field is missing or has another type
        return None
