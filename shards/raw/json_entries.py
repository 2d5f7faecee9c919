"""JSON files too big to hold: their entries one at a time, each with the place of its bytes."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from shards.doctor import Finding
from shards.errors import DataError
from shards.progress import progress

_WINDOW = 1 << 22  # bytes looked at together
_NEAR = 16  # an error that close to the window's end may be the window's
_BLANK = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


class Entry(NamedTuple):
    """A value, the name of the member that it is or is in, and its bytes, file[start:end]."""

    name: str
    start: int
    end: int
    raw: bytes
    value: Any


def entries(path: Path, lists: Collection[str]) -> Iterator[Entry]:
    """What the JSON object in `path` holds, in its order.

    The members named in `lists` have to be there and are given entry by entry, others whole.
    Raises DataError naming the byte where the file is damaged, or what it lacks.
    """
    size = path.stat().st_size
    with path.open("rb") as file, progress(path.name, size, in_bytes=True) as advance:
        reader, names = _Reader(path, file, size, advance), set()
        reader.take("{")
        while reader.next() != "}":
            name = reader.value("").value
            names.add(name)
            reader.take(":")
            if name not in lists:
                yield reader.value(name)
            else:
                reader.take("[")
                while reader.next() != "]":
                    yield reader.value(name)
                    if reader.next() != "]":
                        reader.take(",")
                reader.take("]")
            if reader.next() != "}":
                reader.take(",")
        reader.take("}")
        advance(size - reader.start)
    if missing := [name for name in lists if name not in names]:
        raise damaged(path, reader.size, f"it ends without {missing[0]}")


def read_entries(path: Path, places: Sequence[int]) -> list[Any]:
    """The entries at `places` (start, end, start, end, ...) of a JSON file."""
    found = []
    with path.open("rb") as file:
        for start, end in zip(places[::2], places[1::2], strict=True):
            file.seek(start)
            found.append(json.loads(file.read(end - start)))
    return found


def damaged(path: Path, byte: int, why: str) -> DataError:
    """The error for a JSON file that cannot be used."""
    return DataError(str(Finding(str(path), 22, f"at byte {byte}: {why}")))


class _Reader:
    """Walks a file by a window on it. Read as Latin-1, a character is a byte."""

    def __init__(
        self, path: Path, file: BinaryIO, size: int, advance: Callable[[int], None]
    ) -> None:
        self.path, self.file, self.size, self.advance = path, file, size, advance
        self.start = self.at = 0  # of the window in the file, of the next character in the window
        self._look(_WINDOW)
        if self.text.startswith("\xef\xbb\xbf"):  # UTF-8's byte order mark
            self.at = 3

    def _look(self, size: int) -> None:
        """Put a window of `size` bytes where we are."""
        self.advance(self.at)
        self.start += self.at
        self.at = 0
        self.file.seek(self.start)
        self.text = self.file.read(size).decode("latin-1")
        self.ascii = self.text.isascii()
        self.last = self.start + len(self.text) == self.size

    def next(self) -> str:
        """The next character that is not blank, "" at the end; it stays the next."""
        self.at = _BLANK.match(self.text, self.at).end()
        while self.at == len(self.text) and not self.last:
            self._look(_WINDOW)
            self.at = _BLANK.match(self.text).end()
        return self.text[self.at : self.at + 1]

    def take(self, expected: str) -> None:
        """Step over a character that has to come next."""
        if self.next() != expected:
            raise damaged(self.path, self.start + self.at, f"expected '{expected}'")
        self.at += 1

    def value(self, name: str) -> Entry:
        """The value that comes next."""
        self.next()
        while True:
            try:
                value, end = _decode(self.text, self.at)
                if end < len(self.text) or self.last:  # else a number could go on
                    break
            except json.JSONDecodeError as error:
                near = len(self.text) - error.pos < _NEAR or error.msg.startswith("Unterminated")
                if self.last or not near:
                    raise damaged(self.path, self.start + error.pos, error.msg) from None
            except RecursionError:
                raise damaged(self.path, self.start + self.at, "it is nested too deep") from None
            self._look(_WINDOW if self.at else 2 * len(self.text))
        raw, start = self.text[self.at : end].encode("latin-1"), self.start + self.at
        self.at = end
        if not self.ascii:
            try:
                value = json.loads(raw)
            except ValueError as error:
                raise damaged(self.path, start, str(error)) from None
        return Entry(name, start, self.start + end, raw, value)
