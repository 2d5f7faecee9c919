"""Where every sample lies: the bytes of a sample, `.tar.idx` beside a shard, `samples.parquet`.

A shard is a USTAR file. The bytes of a sample are its members, headers and padding included, so
that one hash covers all of it and one read fetches it.
"""

import json
import mmap
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from shards.errors import DataError
from shards.files import leaves_folder, whole_file

BLOCK = 512
SAMPLES = "samples.parquet"


def members(blob: bytes | memoryview) -> dict[str, bytes]:
    """Extension -> payload of one sample's bytes. Raises DataError on any damage."""
    found: dict[str, bytes] = {}
    keys, offset = set(), 0
    while offset < len(blob):
        key, ext, start, size, offset = _member(blob, offset)
        keys.add(key)
        if ext in found:
            raise DataError(f"{key}.{ext} occurs twice in a sample; rebuild the shard")
        found[ext] = bytes(blob[start : start + size])
    if len(keys) != 1:
        raise DataError(f"a sample holds the keys {sorted(keys)}, not one; rebuild the shard")
    return found


def unpack(blob: bytes) -> dict[str, memoryview]:
    """`members`, as views, of bytes that are just what `scan` saw (their hash says so): what the
    headers say need not be doubted again, and nothing is copied."""
    found, at, view = {}, 0, memoryview(blob)
    while at < len(blob):
        name, size = blob[at : at + 100], int(blob[at + 124 : at + 136].rstrip(b" \0"), 8)
        base = name.rstrip(b"\0").rpartition(b"/")[2]
        start = at + BLOCK
        found[base.partition(b".")[2].decode()] = view[start : start + size]
        at = start + -(-size // BLOCK) * BLOCK
    return found


def member(blob: mmap.mmap, start: int, end: int, ext: str) -> bytes:
    """One member of the sample at `start` to `end` of a shard; no other is read. Raises DataError
    where the sample lacks it or is damaged."""
    at = start
    while at < end:
        _, found, payload, size, at = _member(blob, at)
        if found == ext:
            return blob[payload : payload + size]
    raise DataError(f"the sample at byte {start} has no {ext} member; rebuild the shard")


def _member(blob: bytes | memoryview | mmap.mmap, at: int) -> tuple[str, str, int, int, int]:
    """Key, extension, payload offset and size of the member at `at`, and the next one's offset."""
    try:
        header = tarfile.TarInfo.frombuf(bytes(blob[at : at + BLOCK]), "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise DataError(f"damaged tar header at byte {at} ({error}); rebuild the shard") from error
    if leaves_folder(header.name):
        raise DataError(f"{header.name!r} at byte {at} leaves its folder; do not use this file")
    folder, slash, base = header.name.rpartition("/")
    stem, _, ext = base.partition(".")
    start = at + BLOCK
    end = start + -(-header.size // BLOCK) * BLOCK
    if not header.isreg() or not stem or not ext or header.size < 0 or end > len(blob):
        raise DataError(f"{header.name}: not a whole member at byte {at}; rebuild the shard")
    return folder + slash + stem, ext, start, header.size, end


@dataclass(frozen=True)
class SampleIndex:
    """A row for every sample of a shard set, in the order of the shards: columns of length N.

    `shard` is a place in the manifest's list; `offset` and `length` are bytes in that shard and
    `xxh3` is xxh3_64 of them; `width` and `height` are pixels, `segments` and `instances` counts.
    """

    key: list[str]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    xxh3: np.ndarray
    width: np.ndarray
    height: np.ndarray
    segments: np.ndarray
    instances: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def rows(self, shard: int) -> list[dict[str, Any]]:
        """The rows of one shard, as `scan` gives them."""
        names = [name for name in _COLUMNS.names if name not in ("key", "shard")]
        return [
            {"key": self.key[i], **{name: int(getattr(self, name)[i]) for name in names}}
            for i in np.flatnonzero(self.shard == shard)
        ]

    @classmethod
    def load(cls, folder: Path) -> "SampleIndex":
        """Read `samples.parquet` of a shard set. Raises DataError if it is missing or damaged."""
        path = folder / SAMPLES
        try:
            table = pq.read_table(path).select(_COLUMNS.names).cast(_COLUMNS)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DataError(f"{path}: unreadable ({error}); build the set again") from error
        key, *numbers = table.columns
        return cls(key.to_pylist(), *(column.to_numpy() for column in numbers))


_COLUMNS = pa.schema(
    {
        "key": pa.string(),
        "shard": pa.uint32(),
        "offset": pa.uint64(),
        "length": pa.uint64(),
        "xxh3": pa.uint64(),
        "width": pa.uint32(),
        "height": pa.uint32(),
        "segments": pa.uint32(),
        "instances": pa.uint32(),
    }
)


def save_rows(folder: Path, shards: Sequence[list[dict[str, Any]]]) -> None:
    """Write `samples.parquet` from the rows of each shard, as `scan` gives them."""
    rows = [{**row, "shard": number} for number, of in enumerate(shards) for row in of]
    with whole_file(folder / SAMPLES) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), file, compression="zstd")


def scan(tar: Path) -> list[dict[str, Any]]:
    """The rows of a shard, read from its bytes alone. Raises DataError on damage."""
    try:
        with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            return list(_rows(blob))
    except DataError as error:
        raise DataError(f"{tar}: {error}") from error
    except ValueError as error:
        raise DataError(f"{tar}: empty; rebuild the shard") from error


def _rows(blob: mmap.mmap) -> Iterator[dict[str, Any]]:
    for key, group in groupby(_walk(blob), key=itemgetter(0)):
        _, exts, starts, sizes, ends = zip(*group, strict=True)
        start = starts[0] - BLOCK
        if twice := [ext for ext in exts if exts.count(ext) > 1]:
            raise DataError(f"{key}.{twice[0]} occurs twice in a sample; rebuild the shard")
        try:
            place = exts.index("json")
            document = json.loads(blob[starts[place] : starts[place] + sizes[place]])
            told = {
                **{name: int(document[name]) for name in ("width", "height")},
                **{name: len(document.get(name, ())) for name in ("segments", "instances")},
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{key} at byte {start}: no json member with width and height ({error!r})"
            ) from error
        yield {
            "key": key,
            "offset": start,
            "length": ends[-1] - start,
            "xxh3": xxhash.xxh3_64_intdigest(blob[start : ends[-1]]),
            **told,
        }


def _walk(blob: mmap.mmap) -> Iterator[tuple[str, str, int, int, int]]:
    """`_member` of all members up to the end of the archive."""
    at, end_of_archive = 0, bytes(BLOCK)
    while blob[at : at + BLOCK] != end_of_archive:
        yield (member := _member(blob, at))
        at = member[-1]


def save_offsets(tar: Path, rows: list[dict[str, Any]]) -> None:
    """Write `.tar.idx` of a shard: little-endian u64 offsets of its samples, then their end."""
    end = rows[-1]["offset"] + rows[-1]["length"] if rows else 0
    with whole_file(offsets_path(tar)) as file:
        file.write(np.array([*(row["offset"] for row in rows), end], "<u8").tobytes())


def load_offsets(tar: Path) -> np.ndarray:
    """Offsets of a shard's n samples and their end, u64 `[n + 1]`, from its `.tar.idx`."""
    return np.fromfile(offsets_path(tar), "<u8")


def offsets_path(tar: Path) -> Path:
    """The index file beside a shard."""
    return tar.with_name(tar.name + ".idx")
