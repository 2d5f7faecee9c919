"""Read the tar files that `build` writes.

A shard is a USTAR file, in which a name that is not ASCII or is longer than 100 bytes stands in a
PAX header before its member. The bytes of a sample are its members with their headers and padding,
so that one hash covers all of a sample and one read fetches it.
"""

import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from shards.errors import DataError
from shards.files import Mapped, leaves_folder

BLOCK = 512

_PAX = tarfile.XHDTYPE[0]
_REBUILD = "rebuild the shard"
_HOSTILE = "do not use this file"
Bytes = Mapped | memoryview


class Member(NamedTuple):
    """A member of a tar file: its sample's key, its extension, and its position."""

    key: str
    ext: str
    offset: int  # of its first header
    start: int  # of its payload
    size: int  # of its payload
    end: int  # the end of the padded payload, which is the offset of the next header


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

    The hash proves that these are the bytes that `index.scan` parsed, so only what could end or
    exceed the loop is checked again. Slicing the name (bytes 0 to 99), the octal size (bytes 124 to
    135), and the type (byte 156) out of a header is several times as fast as `tarfile`, and views
    copy nothing.

    Raises:
        DataError: The bytes are not members, although their hash is that of the index.
    """
    found: dict[str, memoryview] = {}
    offset, view, path = 0, memoryview(blob), b""
    try:
        while offset < len(blob):
            size = int(blob[offset + 124 : offset + 136].rstrip(b" \0"), 8)
            start = offset + BLOCK
            if not 0 <= size <= len(blob) - start:
                raise ValueError(f"{size} bytes")
            payload = view[start : start + size]
            if blob[offset + 156] == _PAX:
                path = _pax_path(bytes(payload))
            else:
                name = path or blob[offset : offset + 100].rstrip(b"\0")
                found[name.rpartition(b"/")[2].partition(b".")[2].decode()] = payload
                path = b""
            offset = start + padded(size)
    except (ValueError, IndexError) as error:
        raise DataError(f"damaged tar header at byte {offset} ({error})", fix=_REBUILD) from error
    return found


def member(blob: Mapped, start: int, end: int, ext: str) -> bytes:
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


def stored_members(blob: Mapped) -> Iterator[tuple[str, list[Member]]]:
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


def _walk(blob: Mapped) -> Iterator[Member]:
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
        at = payload + padded(header.size)
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
    end = start + padded(header.size)
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


def padded(size: int) -> int:
    """Return the size of a payload with its padding to whole blocks."""
    return -(-size // BLOCK) * BLOCK
