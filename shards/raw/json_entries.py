"""Read JSON files that are too large to hold in memory, with the byte range of every entry.

`iterate_entries` goes through a file once, and `read_ranges` later reads the entries of one sample.
Streaming parsers such as ijson give the values but not their byte offsets, so this module moves a
window over the file and parses in it with the standard library.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from shards.doctor import RULES
from shards.errors import DataError
from shards.progress import progress

_WINDOW = 1 << 22  # bytes that are parsed together
_NEAR = 16  # an error in the last bytes of the window may only mean that the value is cut off
_DAMAGED = 22  # the number of the finding
_BLANK = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


class Entry(NamedTuple):
    """An entry of a list in a JSON file, or another member of its object.

    Attributes:
        name: The name of the member that the value is, or is an entry of.
        start: The offset of the value's first byte in the file.
        end: The offset behind the value's last byte.
        raw: The bytes of the value.
        value: The parsed value.
    """

    name: str
    start: int
    end: int
    raw: bytes
    value: Any


def iterate_entries(path: Path, lists: Collection[str]) -> Iterator[Entry]:
    """Yield the members of the JSON object in a file, in the order of the file.

    Args:
        path: The JSON file.
        lists: The names of the members that are lists to yield entry by entry. The file must have
            them. Other members are yielded whole.

    Raises:
        DataError: The file is damaged, or a member of `lists` is missing.
    """
    size = path.stat().st_size
    with path.open("rb") as file, progress(path.name, size, in_bytes=True) as advance:
        reader, names = _Reader(path, file, size, advance), set()
        reader.take("{")
        while reader.next() != "}":
            name = reader.name()
            names.add(name)
            reader.take(":")
            if name not in lists:
                yield reader.value(name)
            else:
                reader.take("[")
                while reader.next() != "]":
                    yield reader.value(name)
                    reader.separate("]")
                reader.take("]")
            reader.separate("}")
        reader.take("}")
        reader.take("")
        advance(size - reader.start)
    if missing := [name for name in lists if name not in names]:
        raise damaged(path, reader.size, f"the file ends without {missing[0]}")


def read_ranges(path: Path, ranges: Sequence[int]) -> list[Any]:
    """Parse the values at some byte ranges (start, end, start, end, ...) of a JSON file.

    Raises:
        DataError: A range holds no JSON.
    """
    values = []
    with path.open("rb") as file:
        for start, end in zip(ranges[::2], ranges[1::2], strict=True):
            file.seek(start)
            try:
                values.append(json.loads(file.read(end - start)))
            except ValueError as error:  # the file was changed after it was indexed
                raise damaged(path, start, str(error)) from None
    return values


def damaged(path: Path, byte: int, why: str) -> DataError:
    """Return the error for a JSON file that cannot be used because of `why` at a byte."""
    rule = RULES[_DAMAGED]
    what = f"at byte {byte}: {why} (finding {_DAMAGED}, {rule.name})"
    return DataError(what, where=path, fix=rule.fix)


class _Reader:
    """A JSON parser that moves a window over a file.

    The window is decoded as Latin-1, in which every byte is one character, so that positions in the
    text are byte offsets. Values that are not ASCII are parsed a second time from their bytes.
    """

    def __init__(
        self, path: Path, file: BinaryIO, size: int, advance: Callable[[int], None]
    ) -> None:
        self.path, self.file, self.size, self.advance = path, file, size, advance
        self.start = 0  # the window's offset in the file
        self.at = 0  # the next character's position in the window
        self._move_window(_WINDOW)
        if self.text.startswith("\xef\xbb\xbf"):  # UTF-8's byte order mark
            self.at = 3

    def _move_window(self, size: int) -> None:
        """Read a window of `size` bytes that starts at the next character."""
        self.advance(self.at)
        self.start += self.at
        self.at = 0
        self.file.seek(self.start)
        self.text = self.file.read(size).decode("latin-1")
        self.ascii = self.text.isascii()
        self.last = self.start + len(self.text) == self.size

    def _skip_blanks(self) -> None:
        match = _BLANK.match(self.text, self.at)
        assert match, "the pattern matches the empty string"
        self.at = match.end()

    def next(self) -> str:
        """Return the next character that is not blank without consuming it; "" at the end."""
        self._skip_blanks()
        while self.at == len(self.text) and not self.last:
            self._move_window(_WINDOW)
            self._skip_blanks()
        return self.text[self.at : self.at + 1]

    def take(self, expected: str) -> None:
        """Consume the next character; "" is the end of the file.

        Raises:
            DataError: It is not `expected`.
        """
        if self.next() != expected:
            wanted = f"'{expected}'" if expected else "the end of the file"
            raise damaged(self.path, self.start + self.at, f"expected {wanted}")
        self.at += len(expected)

    def separate(self, end: str) -> None:
        """Consume the comma before another item, or stay at the `end` of the items.

        Raises:
            DataError: The next character is neither, or no item follows the comma.
        """
        if self.next() == end:
            return
        self.take(",")
        if self.next() == end:
            raise damaged(self.path, self.start + self.at, f"expected an item before '{end}'")

    def name(self) -> str:
        """Consume the name of a member.

        Raises:
            DataError: The next value is not a text.
        """
        if self.next() != '"':
            raise damaged(self.path, self.start + self.at, "expected a name in quotes")
        return self.value("").value

    def value(self, name: str) -> Entry:
        """Consume the next value and return it as an entry of the member `name`.

        Raises:
            DataError: The JSON is malformed.
        """
        self.next()
        while True:
            try:
                value, end = _decode(self.text, self.at)
                # A number that ends with the window may have more digits behind it
                if end < len(self.text) or self.last:
                    break
            except json.JSONDecodeError as error:
                near = len(self.text) - error.pos < _NEAR or error.msg.startswith("Unterminated")
                if self.last or not near:
                    raise damaged(self.path, self.start + error.pos, error.msg) from None
            except ValueError as error:  # an integer of thousands of digits
                raise damaged(self.path, self.start + self.at, str(error)) from None
            except RecursionError:
                raise damaged(self.path, self.start + self.at, "too deeply nested") from None
            self._move_window(_WINDOW if self.at else 2 * len(self.text))
        raw, start = self.text[self.at : end].encode("latin-1"), self.start + self.at
        self.at = end
        if not self.ascii:
            try:
                value = json.loads(raw)
            except ValueError as error:
                raise damaged(self.path, start, str(error)) from None
        return Entry(name, start, self.start + end, raw, value)
