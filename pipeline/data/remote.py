"""Bytes below a URL, through fsspec: of the length that was asked for, or a clear error."""

import random
import time
from collections.abc import Callable, Iterator

import fsspec

from shards.errors import UsageError

TRIES = 5
FIRST_PAUSE_S = 0.5  # doubles from try to try, give or take a half
ANSWER_S = 60  # in which a piece must have arrived
PIECE_BYTES = 8 << 20


class Remote:
    """The files below `url`: http(s), s3, gs, or what else fsspec knows.

    Credentials and endpoints are fsspec's own affair (AWS_*, FSSPEC_*). A server that drops,
    stalls or sends too little is asked TRIES times, then a ConnectionError says what it did; what
    is not there is a FileNotFoundError. `ranges` turns False once a server has answered the
    request for a part with the whole. Raises UsageError for a URL that nothing here can read.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.ranges = True
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{url}: {error}") from error

    def whole(self, name: str) -> bytes:
        """A small file."""
        return self._patiently(name, lambda: self._get(name))

    def read(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes of a file from `offset` on."""

        def part() -> bytes:
            blob = self._get(name, start=offset, end=offset + length)
            if len(blob) > length:
                self.ranges = False
                blob = blob[offset : offset + length]
            if len(blob) != length:
                raise OSError(f"{len(blob)} bytes came where {length} were asked for")
            return blob

        return self._patiently(name, part)

    def pieces(self, name: str, length: int) -> Iterator[bytes]:
        """A file of `length` bytes in order, a piece at a time."""
        offset = 0
        while offset < length:
            size = min(PIECE_BYTES, length - offset) if self.ranges else length - offset
            yield self.read(name, offset, size)
            offset += size

    def _get(self, name: str, **part: int) -> bytes:
        path = f"{self._root}/{name}"
        if not self._fs.async_impl:
            return self._fs.cat_file(path, **part)
        return fsspec.asyn.sync(
            self._fs.loop, self._fs._cat_file, path, timeout=ANSWER_S, **part
        )  # cat_file itself has no time limit

    def _patiently(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        for number in range(TRIES):
            if number:
                time.sleep(FIRST_PAUSE_S * 2 ** (number - 1) * random.uniform(0.5, 1.5))
            try:
                return fetch()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{self.url}/{name}") from error
            except Exception as error:  # every file system has its own kinds
                last = error
        told = f"no answer within {ANSWER_S} s" if isinstance(last, TimeoutError) else repr(last)
        raise ConnectionError(
            f"{self.url}/{name}: {told}, {TRIES} times over; "
            "see that this machine reaches the server"
        ) from last
