"""Read tar files: those that `build` writes, and third-party ones.

A shard is a USTAR file. The bytes of a sample are its members with their headers and padding, so
that one hash covers all of a sample and one read fetches it.
"""

import mmap
import tarfile
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from shards.errors import DataError
from shards.files import leaves_folder

BLOCK = 512

_REBUILD = "rebuild the shard"
_HOSTILE = "do not use this file"
Bytes = bytes | memoryview | mmap.mmap


class Member(NamedTuple):
    """A member of a tar file: its sample's key, its extension, and the position of its payload."""

    key: str
    ext: str
    start: int
    size: int
    end: int  # the end of the padded payload, which is the offset of the next header


class StoredSample(NamedTuple):
    """A sample of a third-party tar: its members by extension, and its range in the tar."""

    key: str
    members: dict[str, bytes]
    start: int
    end: int


def members(blob: bytes | memoryview) -> dict[str, bytes]:
    """Return the payloads in the bytes of one sample, by extension.

    Raises:
        DataError: The bytes are not exactly the members of one sample.
    """
    found: dict[str, bytes] = {}
    keys: set[str] = set()
    offset = 0
    while offset < len(blob):
        member = _member_at(blob, offset)
        keys.add(member.key)
        if member.ext in found:
            raise DataError(f"the member {member.ext} occurs twice", where=member.key, fix=_REBUILD)
        found[member.ext] = bytes(blob[member.start : member.start + member.size])
        offset = member.end
    if len(keys) != 1:
        listed = ", ".join(sorted(keys)) or "none"
        raise DataError(f"a sample must have members of one key, not of {listed}", fix=_REBUILD)
    return found


def unpack(blob: bytes) -> dict[str, memoryview]:
    """Return the payloads of a sample whose hash was verified, as views by extension.

    The hash proves that these are the bytes that `index.scan` parsed, so the headers need no
    second check. Slicing the name (bytes 0 to 99) and the octal size (bytes 124 to 135) out of a
    header is several times as fast as `tarfile`, and views copy nothing.
    """
    found: dict[str, memoryview] = {}
    offset, view = 0, memoryview(blob)
    while offset < len(blob):
        name = blob[offset : offset + 100].rstrip(b"\0")
        size = int(blob[offset + 124 : offset + 136].rstrip(b" \0"), 8)
        _, _, ext = name.rpartition(b"/")[2].partition(b".")
        start = offset + BLOCK
        found[ext.decode()] = view[start : start + size]
        offset = start + _padded(size)
    return found


def member(blob: mmap.mmap, start: int, end: int, ext: str) -> bytes:
    """Return one member of the sample at bytes `start` to `end` of a shard.

    The payloads of the other members are not read.

    Raises:
        DataError: The sample has no such member or is damaged.
    """
    offset = start
    while offset < end:
        found = _member_at(blob, offset)
        if found.ext == ext:
            return blob[found.start : found.start + found.size]
        offset = found.end
    raise DataError(f"the sample at byte {start} has no {ext} member", fix=_REBUILD)


def stored_members(blob: mmap.mmap) -> Iterator[tuple[str, list[Member]]]:
    """Yield the key and the members of every sample in a shard.

    Raises:
        DataError: The shard is damaged, or a member occurs twice in a sample.
    """
    for key, group in groupby(_walk(blob), key=attrgetter("key")):
        found = list(group)
        exts = [member.ext for member in found]
        if repeated := [ext for ext in exts if exts.count(ext) > 1]:
            raise DataError(f"{key}.{repeated[0]} occurs twice in a sample", fix=_REBUILD)
        yield key, found


def _walk(blob: mmap.mmap) -> Iterator[Member]:
    """Yield the members up to the block of zeros that ends the archive."""
    offset, end_of_archive = 0, bytes(BLOCK)
    while blob[offset : offset + BLOCK] != end_of_archive:
        member = _member_at(blob, offset)
        yield member
        offset = member.end


def _member_at(blob: Bytes, offset: int) -> Member:
    """Parse the header at `offset`.

    Raises:
        DataError: The header is damaged, its name is not KEY.EXTENSION or leaves its folder, or its
            payload is incomplete.
    """
    try:
        header = tarfile.TarInfo.frombuf(bytes(blob[offset : offset + BLOCK]), "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise DataError(f"damaged tar header at byte {offset} ({error})", fix=_REBUILD) from error
    if leaves_folder(header.name):
        raise DataError(f"{header.name!r} at byte {offset} leaves its folder", fix=_HOSTILE)
    folder, slash, base = header.name.rpartition("/")
    stem, _, ext = base.partition(".")
    start = offset + BLOCK
    end = start + _padded(header.size)
    if not header.isreg() or not stem or not ext or header.size < 0 or end > len(blob):
        raise DataError(
            f"{header.name} at byte {offset} is not a complete file KEY.EXTENSION", fix=_REBUILD
        )
    return Member(folder + slash + stem, ext, start, header.size, end)


def _padded(size: int) -> int:
    """Return the size of a payload with its padding to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def third_party_samples(file: BinaryIO, name: str) -> Iterator[StoredSample]:
    """Yield every sample of a third-party tar: consecutive members with the same key.

    Args:
        file: The tar, in any format that `tarfile` reads without decompression.
        name: The name of the tar in errors.

    Raises:
        DataError: The tar is damaged or compressed, or a member is repeated, is not a file
            KEY.EXTENSION, or leaves its folder.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for key, group in groupby(_named_files(archive, file, name), key=itemgetter(0)):
                found: dict[str, bytes] = {}
                offsets: list[int] = []
                for _, ext, header in group:
                    if ext in found:
                        raise DataError(
                            f"{key}.{ext} occurs twice in a sample", where=name, fix="rename one"
                        )
                    payload = archive.extractfile(header)
                    assert payload is not None, "only regular files are listed"
                    found[ext] = payload.read()
                    offsets += [header.offset, header.offset_data + _padded(header.size)]
                yield StoredSample(key, found, offsets[0], offsets[-1])
    except tarfile.TarError as error:
        raise DataError(
            f"not an uncompressed tar file ({error})",
            where=name,
            fix="decompress it or download it again",
        ) from error


def _named_files(
    archive: tarfile.TarFile, file: BinaryIO, name: str
) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield the key, the extension, and the header of every file in a tar.

    Raises:
        DataError: A member is not a file KEY.EXTENSION or leaves its folder, or the tar ends in a
            damaged header.
    """
    for header in archive:
        path = PurePosixPath(header.name)
        if leaves_folder(header.name):
            raise DataError(f"{header.name!r} leaves its folder", where=name, fix=_HOSTILE)
        if header.isdir():
            continue
        stem, _, ext = path.name.partition(".")
        if not header.isreg() or header.issparse() or not stem or not ext:
            raise DataError(
                f"{header.name!r} is not a file KEY.EXTENSION", where=name, fix="remove it"
            )
        yield str(path.with_name(stem)), ext, header
    # tarfile stops at a damaged header as if the archive ended there, but a real end is a block
    # of zeros.
    file.seek(archive.offset)
    if file.read(BLOCK).strip(b"\0"):
        raise DataError(
            f"damaged tar header at byte {archive.offset}", where=name, fix="download it again"
        )
