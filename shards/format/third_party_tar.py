"""Read third-party tar files, in any format of `tarfile`, and without trust in their headers."""

import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from shards.errors import DataError
from shards.files import is_clutter
from shards.format.schema import MAX_SAMPLE_BYTES, is_metadata
from shards.format.tar import BLOCK, padded


class StoredSample(NamedTuple):
    """A sample of a third-party tar: its members by extension, and its range in the tar."""

    key: str
    members: dict[str, bytes]
    start: int
    end: int
    repeated: tuple[str, ...]  # the extensions that occur more than once


class _BoundedFile:
    """A file that is read by tarfile, which believes every size in a header.

    A read returns at most what the file has, and a tar whose headers lead in circles ends after
    twice the bytes of the file and a block per read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._read = file.read
        self.size = file.seek(0, os.SEEK_END)
        self._left = 4 * self.size + 64 * BLOCK
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or the rest.

        Raises:
            tarfile.ReadError: More was read than any sound tar needs.
        """
        rest = max(0, self.size - self.tell())
        blob = self._read(min(size, rest) if size >= 0 else rest)
        self._left -= max(len(blob), BLOCK)
        if self._left < 0:
            raise tarfile.ReadError("its headers lead in circles")
        return blob


def third_party_samples(
    file: BinaryIO, name: str, skipped: list[str] | None = None
) -> Iterator[StoredSample]:
    """Yield every sample of a third-party tar: consecutive members with the same key.

    Like `webdataset`, this writes extensions in lower case, and skips what is not a file
    KEY.EXTENSION or is in a folder such as `__meta__`. It also skips hidden files and folders.

    Args:
        file: The tar, in any format that `tarfile` reads without decompression.
        name: The name of the tar in errors.
        skipped: Receives the names of the files that are skipped.

    Raises:
        DataError: The tar is damaged or compressed.
    """
    skipped = [] if skipped is None else skipped
    try:
        bounded = _BoundedFile(file)
        with tarfile.open(fileobj=cast(BinaryIO, bounded), mode="r:") as archive:
            named = _named_files(archive, file, name, skipped)
            for key, group in groupby(named, key=itemgetter(0)):
                found: dict[str, bytes] = {}
                offsets: list[int] = []
                repeated: list[str] = []
                for _, ext, header in group:
                    if ext in found:
                        repeated.append(ext)
                    if not 0 <= header.size <= bounded.size - header.offset_data:
                        raise tarfile.ReadError(f"{header.name} has {header.size} bytes")
                    file.seek(header.offset_data)
                    found[ext] = file.read(header.size)
                    offsets += [header.offset, header.offset_data + padded(header.size)]
                    if offsets[-1] - offsets[0] > MAX_SAMPLE_BYTES:
                        raise tarfile.ReadError(f"{key} exceeds {MAX_SAMPLE_BYTES} bytes")
                yield StoredSample(key, found, offsets[0], offsets[-1], tuple(repeated))
    except (DataError, OSError):
        raise
    except Exception as error:  # a damaged header can raise almost any class in tarfile
        raise DataError(
            f"not an uncompressed tar file ({error})",
            where=name,
            fix="decompress it or download it again",
        ) from error


def _named_files(
    archive: tarfile.TarFile, file: BinaryIO, name: str, skipped: list[str]
) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the key, the extension, and the header of every file in a tar that is KEY.EXTENSION.

    Raises:
        DataError: The tar ends in a damaged header.
    """
    for header in archive:
        if header.isdir():
            continue
        path = PurePosixPath(header.name)
        stem, _, ext = path.name.partition(".")
        is_file = header.isreg() and not header.issparse() and stem and ext
        if not is_file or is_clutter(path) or is_metadata(header.name):
            skipped.append(header.name)
        else:
            yield str(path.with_name(stem)), ext.lower(), header
    # tarfile stops at a damaged header as if the archive ended there, but a real end is a block
    # of zeros.
    file.seek(archive.offset)
    if file.read(BLOCK).strip(b"\0"):
        raise DataError(
            f"damaged tar header at byte {archive.offset}", where=name, fix="download it again"
        )
