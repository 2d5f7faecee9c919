"""The file events.jsonl of a run: any process of the run appends to it, and several read it."""

import contextlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pipeline.run.events import KIND_OF_NAME, Event
from shards import jsonl

EVENTS = "events.jsonl"
Kind = TypeVar("Kind", bound=Event)


def append(folder: Path, event: Event) -> None:
    """Append an event to the events.jsonl of a run folder. Any process of the run may do so."""
    jsonl.append(folder / EVENTS, event.to_json())


def parse(line: str) -> Event | None:
    """Return the event of a line; None if it cannot be read or is of an unknown kind."""
    with contextlib.suppress(json.JSONDecodeError):
        return _event(json.loads(line))
    return None


def read(folder: Path) -> list[Event]:
    """Return the events of a run, without the lines that `parse` cannot read."""
    events = map(_event, jsonl.rows(folder / EVENTS))
    return [event for event in events if event is not None]


def read_kind(folder: Path, kind: type[Kind]) -> list[Kind]:
    """Return the events of one kind."""
    return [event for event in read(folder) if isinstance(event, kind)]


class Tail:
    """Reads the events that are appended to the events.jsonl of a run from now on."""

    def __init__(self, folder: Path):
        self._path = folder / EVENTS
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def read(self) -> list[Event]:
        """Return the events that were completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + newline)
        events = map(parse, whole.decode(errors="replace").splitlines())
        return [event for event in events if event is not None]


def _event(row: Any) -> Event | None:
    try:
        kind = KIND_OF_NAME.get(row["event"])
        return kind.from_json(row) if kind else None
    except (TypeError, KeyError):  # a field is missing, or the line is not an object
        return None
