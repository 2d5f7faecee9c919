"""The events of a run: the processes of a host append to one file, and several processes read all.

The processes on the host of rank 0 append to events.jsonl, those of another host to
events-HOST.jsonl, because appends of two hosts to one file on a network file system can be lost.
"""

import heapq
import os
import platform
import re
import threading
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from model.settings import SettingError
from pipeline.distributed import all_gather, rank_and_world
from pipeline.run.events import KIND_OF_NAME, Event, Warned
from shards import jsonl
from shards.files import open_regular

EVENTS = "events.jsonl"
FIELDS = {"event": str}
Kind = TypeVar("Kind", bound=Event)
_waiting: dict[Path, list[jsonl.Row]] = {}  # rows of this process that the disk has refused
_lock = threading.RLock()
_own = EVENTS  # the file of this process


def write_as_host(host: str) -> None:
    """Let this process, which is not on the host of rank 0, append to the file of its own host."""
    global _own
    _own = f"events-{re.sub(r'[^a-zA-Z0-9_.-]', '_', host)}.jsonl"


def own_name() -> str:
    """Return the name of the file to which this process appends."""
    return _own


def is_log(name: str) -> bool:
    """Return whether a file of a run holds events."""
    return name == EVENTS or is_log_of_host(name)


def is_log_of_host(name: str) -> bool:
    """Return whether a file of a run holds the events of a host without rank 0."""
    return name.startswith("events-") and name.endswith(".jsonl") and "/" not in name


def separate_hosts() -> None:
    """Let each host without rank 0 append to a file of its own. All ranks must call it."""
    hosts, host = all_gather(platform.node()), platform.node()
    if host != hosts[0]:
        write_as_host(host)


def files(folder: Path) -> list[Path]:
    """Return the files with the events of a run, that of rank 0's host first."""
    return [folder / EVENTS, *sorted(folder.glob("events-*.jsonl"))]


def append(folder: Path, event: Event) -> None:
    """Append an event to the file of this host. Any process of the run may do so."""
    append_row(folder / _own, event.to_json())


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
            _waiting.setdefault(path.parent / _own, []).append(warned.to_json())


def read(folder: Path) -> list[Event]:
    """Return the events of a run in the order of time, each host's in the order of its file.

    Lines that cannot be read, and those of an unknown kind, are left out.
    """
    logs = (jsonl.rows(path, FIELDS) for path in files(folder))
    of_hosts = [[event for row in rows if (event := _event(row))] for rows in logs]
    return list(heapq.merge(*of_hosts, key=attrgetter("time")))


def unreadable(folder: Path) -> int:
    """Return the number of lines that cannot be read; those of an unknown kind do not count."""
    return sum(jsonl.read(path, FIELDS)[1] for path in files(folder))


def read_kind(folder: Path, kind: type[Kind]) -> list[Kind]:
    """Return the events of one kind."""
    return [event for event in read(folder) if isinstance(event, kind)]


class Tail:
    """Reads the events that are appended to the files of a run from now on."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._offsets = {path: path.stat().st_size for path in files(folder) if path.exists()}

    def read(self) -> list[Event]:
        """Return the events that were completed since the last call, those of each host in order.

        There are none of a file that is missing or cannot be read.
        """
        return [event for path in files(self._folder) for event in self._read(path)]

    def _read(self, path: Path) -> list[Event]:
        offset = self._offsets.get(path, 0)
        try:
            with open_regular(path) as file:
                offset = min(offset, file.seek(0, os.SEEK_END))  # someone may have cut the file
                file.seek(offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._offsets[path] = offset + len(whole + newline)
        rows = (jsonl.parse(line, FIELDS) for line in whole.split(b"\n"))
        return [event for row in rows if row and (event := _event(row))]


def _event(row: jsonl.Row) -> Event | None:
    try:
        kind = KIND_OF_NAME.get(row["event"])
        return kind.from_json(row) if kind else None
    except (TypeError, KeyError, SettingError):  # a field is missing or has another type
        return None
