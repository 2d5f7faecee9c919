"""The positions of samples: `samples.parquet` of a shard set, and a `.tar.idx` per shard."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from shards.errors import DataError
from shards.files import Mapped, mapped, whole_file
from shards.format.codec import decode_json
from shards.format.manifest import Manifest
from shards.format.schema import KEY_BYTES, MAX_PIXELS, MAX_SAMPLE_BYTES
from shards.format.tar import Member, stored_members

SAMPLES = "samples.parquet"

_REBUILD = "build the set again"

Row = dict[str, Any]  # of the index, without the number of the shard

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


@dataclass(frozen=True)
class SampleIndex:
    """One row per sample of a shard set, in the order of the shards: columns of length N.

    Attributes:
        key: The samples' keys.
        shard: The index of the shard in the manifest's list.
        offset: The first byte of the sample in that shard.
        length: The number of bytes.
        xxh3: xxh3_64 of these bytes.
        width: The width of the image in pixels.
        height: The height of the image in pixels.
        segments: The number of panoptic segments.
        instances: The number of instances.
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

    def rows(self, shard: int) -> list[Row]:
        """Return the rows of one shard as `scan` does."""
        names = [name for name in _COLUMNS.names if name not in ("key", "shard")]
        return [
            {"key": self.key[i], **{name: int(getattr(self, name)[i]) for name in names}}
            for i in np.flatnonzero(self.shard == shard)
        ]

    @classmethod
    def load(cls, folder: Path, manifest: Manifest | None = None) -> "SampleIndex":
        """Read `samples.parquet` of a shard set.

        Args:
            folder: The folder of the set.
            manifest: The manifest of the set; None reads it.

        Raises:
            DataError: The file is missing or damaged, or contradicts the manifest.
        """
        path = folder / SAMPLES
        manifest = manifest or Manifest.load(folder)
        try:
            index = cls(*_columns(path, manifest.samples))
            problem = index._contradiction(manifest)
        except (OSError, KeyError, ValueError, MemoryError, pa.ArrowException) as error:
            raise DataError(f"unreadable ({error})", where=path, fix=_REBUILD) from error
        if problem:
            raise DataError(problem, where=path, fix=_REBUILD)
        return index

    def _contradiction(self, manifest: Manifest) -> str:
        """Return what rows of correct types must not say, or ""."""
        shards = manifest.shards
        if len(self) and int(self.shard.max()) >= len(shards):
            return f"a sample is in shard {self.shard.max()} of {len(shards)}"
        if (np.diff(self.shard.astype(int)) < 0).any():
            return "the samples are not in the order of the shards"
        counts = np.bincount(self.shard, minlength=len(shards)).tolist()
        if counts != [shard.samples for shard in shards]:
            return "the samples per shard are not those of the manifest"
        sizes = np.array([shard.bytes for shard in shards], np.uint64)[self.shard]
        beyond = (self.length > sizes) | (self.offset > sizes - np.minimum(self.length, sizes))
        same = self.shard[1:] == self.shard[:-1]
        overlaps = same & (self.offset[1:] < self.offset[:-1] + self.length[:-1])
        pixels = self.width.astype(np.uint64) * self.height
        for wrong, what in (
            (beyond, "reaches beyond the end of its shard"),
            (overlaps, "overlaps the next sample"),
            (self.length > MAX_SAMPLE_BYTES, f"exceeds {MAX_SAMPLE_BYTES} bytes"),
            ((pixels == 0) | (pixels > MAX_PIXELS), f"does not have 1 to {MAX_PIXELS} pixels"),
        ):
            if wrong.any():
                return f"sample {self.key[int(wrong.argmax())]!r} {what}"
        return ""


def _columns(path: Path, count: int) -> list[Any]:
    """Return the columns of an index of `count` rows: a list of texts, and arrays of numbers.

    Memory is bounded by the size of the file: every row has a hash of 8 bytes, which no compression
    shortens, and keys are not expanded before their length is known.

    Raises:
        ValueError: The file has another number of rows, or a value is missing or too long.
    """
    with pq.ParquetFile(path, read_dictionary=["key"]) as file:
        rows, size = file.metadata.num_rows, path.stat().st_size
        if rows != count or 8 * rows > size:
            raise ValueError(f"{rows} rows in {size} bytes; the manifest lists {count}")
        table = file.read(_COLUMNS.names).select(_COLUMNS.names)
    if any(column.null_count for column in table.columns):
        raise ValueError("a value is missing")
    keys = (key for chunk in table["key"].chunks for key in chunk.dictionary.to_pylist())
    if any(len(key or "") > KEY_BYTES for key in keys):
        raise ValueError(f"a key has more than {KEY_BYTES} characters")
    key, *numbers = table.cast(_COLUMNS).columns
    return [key.to_pylist(), *(column.to_numpy() for column in numbers)]


def save_rows(folder: Path, shards: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Write `samples.parquet` from the rows of each shard."""
    rows = [{**row, "shard": number} for number, found in enumerate(shards) for row in found]
    with whole_file(folder / SAMPLES) as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=_COLUMNS), file, compression="zstd")


def scan(tar: Path) -> list[Row]:
    """Return the rows of a shard, read from its bytes alone.

    Raises:
        DataError: The shard is damaged.
    """
    try:
        with mapped(tar) as blob:
            return list(_rows(blob))
    except DataError as error:
        raise error.at(tar) from error
    except ValueError as error:  # mmap refuses an empty file
        raise DataError("the file is empty", where=tar, fix="rebuild the shard") from error


def _rows(blob: Mapped) -> Iterator[Row]:
    for key, found in stored_members(blob):
        start, end = found[0].offset, found[-1].end
        yield {
            "key": key,
            "offset": start,
            "length": end - start,
            "xxh3": xxhash.xxh3_64_intdigest(blob[start:end]),
            **_facts(blob, key, found),
        }


def _facts(blob: Mapped, key: str, found: Sequence[Member]) -> dict[str, int]:
    """Return the columns of a row that come from the sample's JSON."""
    [*documents] = (member for member in found if member.ext == "json")
    if len(documents) != 1:
        where = f"{key} at byte {found[0].offset}"
        raise DataError("the sample has no json member", where=where, fix="rebuild the shard")
    start = documents[0].start
    sample = decode_json(key, blob[start : start + documents[0].size])
    return {
        "width": sample.width,
        "height": sample.height,
        "segments": len(sample.segments or ()),
        "instances": len(sample.instances or ()),
    }


def save_offsets(tar: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `.tar.idx` of a shard: the offsets of its samples and their end, little-endian u64."""
    with whole_file(offsets_path(tar)) as file:
        file.write(np.array(offsets_of(rows), "<u8").tobytes())


def offsets_of(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return what `.tar.idx` holds for the rows of a shard."""
    end = rows[-1]["offset"] + rows[-1]["length"] if rows else 0
    return [*(row["offset"] for row in rows), end]


def load_offsets(tar: Path) -> np.ndarray:
    """Read `.tar.idx` of a shard: `uint64 [n + 1]`, the offsets of n samples and their end."""
    return np.fromfile(offsets_path(tar), "<u8")


def offsets_path(tar: Path) -> Path:
    """Return the path of the `.tar.idx` beside a shard."""
    return tar.with_name(tar.name + ".idx")
