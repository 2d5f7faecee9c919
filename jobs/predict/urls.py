"""Images at URLs, which are downloaded one at a time."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from shards.errors import DataError, M2FError
from shards.format.images import decode_image
from shards.remote import RemoteFolder, RetryPolicy

MAX_BYTES = 1 << 29  # of an image, which may have 2^28 pixels
POLICY = RetryPolicy(tries=3, timeout_s=30)
_QUERY = re.compile(r"\?[^\s'\"]*")  # it may hold a signature


@dataclass(frozen=True)
class ImageAtUrl:
    """An image at a URL, with its query."""

    url: str

    def stamp(self) -> str:
        """Return what identifies the image, which is its URL alone: the server is not asked."""
        return without_query(self.url)

    def read(self) -> np.ndarray:
        """Return the image, RGB `uint8 [H, W, 3]`.

        Raises:
            DataError: It cannot be downloaded, is too large, or does not decode.
        """
        where = without_query(self.url)
        try:
            encoded = _RemoteFile(self.url, POLICY).read_at_most(MAX_BYTES)
        except FileNotFoundError as error:
            raise DataError("the server has no such file", where=where) from error
        except M2FError as error:
            what = _QUERY.sub("?…", error.problem.what)
            raise DataError(f"it cannot be downloaded: {what}", where=where) from error
        if encoded is None:
            raise DataError(f"the file is larger than {MAX_BYTES >> 20} MiB", where=where)
        if not encoded:
            raise DataError("the file is empty", where=where)
        return decode_image(encoded, where)


def without_query(url: str) -> str:
    """Return a URL without its query and its fragment."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


def path_of(url: str) -> Path:
    """Return a path that gives an image or a folder at a URL its name; nothing lies there."""
    return Path(os.path.normpath("/" + without_query(url).replace("://", "/", 1)))


def images_below(url: str, suffixes: set[str]) -> Iterator[str]:
    """Yield the URLs of the images below the URL of a folder that can be listed."""
    for name in sorted(RemoteFolder(url).files()):
        if Path(name).suffix.lower() in suffixes:
            yield f"{url.rstrip('/')}/{name}"


class _RemoteFile(RemoteFolder):
    """A single file, whose URL may have a query."""

    def read_at_most(self, limit: int) -> bytes | None:
        """Return the file; None if it has more than `limit` bytes.

        Raises:
            FileNotFoundError: It is missing.
        """
        info = self.info("")
        if info is None or info.bytes is None:  # see `RemoteFolder.fetch`
            content = self.read("")
            return content if len(content) <= limit else None
        return b"".join(self.pieces("", info.bytes)) if info.bytes <= limit else None

    def _path(self, name: str) -> str:
        return self._root
