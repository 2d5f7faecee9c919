"""Read tar files: those that `build` writes, and third-party ones.

A shard is a USTAR file, in which a name that is not ASCII or is longer than 100 bytes stands in a
PAX header before its member. The bytes of a sample are its members with their headers and padding,
so that one hash covers all of a sample and one read fetches it.
"""

import mmap
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

from shards.errors import DataError
from shards.files import is_clutter, leaves_folder
from shards.format.schema import is_metadata

BLOCK = 512

_PAX = tarfile.XHDTYPE[0]
_REBUILD = "rebuild the shard"
_HOSTILE = "do not use this file"
Bytes = bytes | memoryview | mmap.mmap


class Member(NamedTuple):
    """A member of a tar file: its sample's key, its extension, and its position."""

    key: str
    ext: str
    offset: int  # of its first header
    start: int  # of its payload
    size: int  # of its payload
    end: int  # the end of the padded payload, which is the offset of the next header


class StoredSample(NamedTuple):
    """A sample of a third-party tar: its members by extension, and its range in the tar."""

    key: str
    members: dict[str, bytes]
    start: int
    end: int
    repeated: tuple[str, ...]  # the extensions that occur more than once


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
    second check. Slicing the name (bytes 0 to 99), the octal size (bytes 124 to 135), and the type
    (byte 156) out of a header is several times as fast as `tarfile`, and views copy nothing.
    """
    found: dict[str, memoryview] = {}
    offset, view, path = 0, memoryview(blob), b""
    while offset < len(blob):
        size = int(blob[offset + 124 : offset + 136].rstrip(b" \0"), 8)
        start = offset + BLOCK
        payload = view[start : start + size]
        if blob[offset + 156] == _PAX:
            path = _pax_path(bytes(payload))
        else:
            name = path or blob[offset : offset + 100].rstrip(b"\0")
            found[name.rpartition(b"/")[2].partition(b".")[2].decode()] = payload
            path = b""
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
    """Parse the header at `offset`, and the one after it if that one is a PAX header with a name.

    Raises:
        DataError: The header is damaged, its name is not KEY.EXTENSION or leaves its folder, or its
            payload is incomplete.
    """
    at, header = offset, _header_at(blob, offset)
    name = header.name
    if header.type == tarfile.XHDTYPE:
        payload = at + BLOCK
        at = payload + _padded(header.size)
        try:
            name = _pax_path(bytes(blob[payload : payload + header.size])).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"a name at byte {offset} is not UTF-8", fix=_REBUILD) from error
        header = _header_at(blob, at)
    if leaves_folder(name):
        raise DataError(f"{name!r} at byte {offset} leaves its folder", fix=_HOSTILE)
    folder, slash, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    start = at + BLOCK
    end = start + _padded(header.size)
    if not header.isreg() or not stem or not ext or end > len(blob):
        raise DataError(
            f"{name} at byte {offset} is not a complete file KEY.EXTENSION", fix=_REBUILD
        )
    return Member(folder + slash + stem, ext, offset, start, header.size, end)


def _header_at(blob: Bytes, offset: int) -> tarfile.TarInfo:
    """Parse one block.

    Raises:
        DataError: The block is not a header, or declares a negative size.
    """
    try:
        header = tarfile.TarInfo.frombuf(bytes(blob[offset : offset + BLOCK]), "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise DataError(f"damaged tar header at byte {offset} ({error})", fix=_REBUILD) from error
    if header.size < 0:
        raise DataError(f"negative size in the tar header at byte {offset}", fix=_REBUILD)
    return header


def _pax_path(records: bytes) -> bytes:
    """Return the name in the payload of a PAX header; the writer puts nothing else into one.

    Raises:
        DataError: The payload is not one record `LENGTH path=NAME`.
    """
    found = re.fullmatch(rb"(\d{1,9}) path=(.+)\n", records, re.DOTALL)
    if not found or int(found[1]) != len(records):
        raise DataError("a PAX header holds more than a name", fix=_REBUILD)
    return found[2]


def _padded(size: int) -> int:
    """Return the size of a payload with its padding to whole blocks."""
    return -(-size // BLOCK) * BLOCK


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
        with tarfile.open(fileobj=file, mode="r:") as archive:
            named = _named_files(archive, file, name, skipped)
            for key, group in groupby(named, key=itemgetter(0)):
                found: dict[str, bytes] = {}
                offsets: list[int] = []
                repeated: list[str] = []
                for _, ext, header in group:
                    if ext in found:
                        repeated.append(ext)
                    payload = archive.extractfile(header)
                    assert payload is not None, "only regular files are listed"
                    found[ext] = payload.read()
                    offsets += [header.offset, header.offset_data + _padded(header.size)]
                yield StoredSample(key, found, offsets[0], offsets[-1], tuple(repeated))
    except tarfile.TarError as error:
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
