"""Check one shard of a finished set: its size, hash, index, and every sample."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from shards.errors import DataError
from shards.files import sha256
from shards.format.check import check_sample
from shards.format.images import image_of
from shards.format.index import Row, load_offsets, offsets_of, offsets_path, scan
from shards.format.manifest import Manifest, Shard
from shards.format.read import read_sample
from shards.format.tar import members
from shards.remote import RemoteFolder

_REBUILD = "build the set again"
_REPAIR = "--repair writes it again"


@dataclass(frozen=True, slots=True)
class Defect:
    """What is wrong with a file of a shard set.

    Attributes:
        where: The path or URL of the file.
        text: What is wrong, and the fix.
        offset: The byte at which it is wrong, if it is one byte.
        in_tar: Whether the file is a tar, which only a new build repairs.
    """

    where: str
    text: str
    offset: int | None = None
    in_tar: bool = False

    def __str__(self) -> str:
        offset = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.where}{offset}: {self.text}"


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """A shard to check.

    Attributes:
        tar: The path of the shard, to which it is downloaded if `remote` is set.
        where: The path or URL of the shard for the report.
        shard: The shard's entry in the manifest.
        rows: The rows of the index, or None if the index is lost.
        manifest: The manifest of the set.
        sample: The number of samples to check, or None for all of them and the whole file.
        remote: The server that has the shard, or None.
    """

    tar: Path
    where: str
    shard: Shard
    rows: list[Row] | None
    manifest: Manifest
    sample: int | None
    remote: RemoteFolder | None

    def defect(self, text: str, offset: int | None = None) -> Defect:
        """Return a defect of the tar."""
        return Defect(self.where, text, offset, in_tar=True)

    def index_defect(self, text: str) -> Defect:
        """Return a defect of the `.tar.idx`."""
        return Defect(str(offsets_path(Path(self.where))), text)


def check_shard(check: ShardCheck) -> list[Defect]:
    """Return the defects of a shard and its `.tar.idx` in the order of the bytes.

    A shard on a server is downloaded first, and its copy is removed.

    Raises:
        Failed: The server does not answer.
    """
    if check.remote is None:
        return _check_file(check)
    files = [check.tar]
    if not check.manifest.foreign:
        files.append(offsets_path(check.tar))
    try:
        for path in files:
            check.remote.fetch(path.name, path)
        return _check_file(check)
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def _check_file(check: ShardCheck) -> list[Defect]:
    if not check.tar.is_file():
        return [check.defect(f"the file is missing; {_REBUILD}")]
    size, built = check.tar.stat().st_size, check.shard.bytes
    if size != built:
        text = f"the file has {size} bytes, the manifest lists {built}; {_REBUILD}"
        return [check.defect(text, min(size, built))]
    return _check_third_party(check) if check.manifest.foreign else _check_built(check)


def _check_built(check: ShardCheck) -> list[Defect]:
    """Check a shard that `build` wrote."""
    rows, defects = check.rows, []
    if check.sample is None:
        try:
            rows = scan(check.tar)
        except DataError as error:
            return [check.defect(f"{error.problem.what}; {_REBUILD}")]
        defects = _differences(check, rows)
        if not defects:
            defects = _check_hash(check)
    assert rows is not None, "some samples of a shard are checked only with its index"
    manifest = check.manifest

    def check_blob(key: str, blob: bytes) -> None:
        check_sample(key, members(blob), manifest.members, len(manifest.taxonomy))

    defects += _check_samples(check, _chosen(check, rows), check_blob)
    return defects + _check_offsets(check, rows)


def _check_third_party(check: ShardCheck) -> list[Defect]:
    """Check a third-party tar, which has no `.tar.idx` and may hold more than the index lists."""
    assert check.rows is not None, "a third-party tar is checked only with its index"
    defects = _check_hash(check) if check.sample is None else []

    def check_blob(key: str, blob: bytes) -> None:
        image_of(read_sample(check.manifest, key, blob))

    return defects + _check_samples(check, _chosen(check, check.rows), check_blob)


def _check_hash(check: ShardCheck) -> list[Defect]:
    if sha256(check.tar) == check.shard.sha256:
        return []
    return [check.defect(f"the hash of the file differs from the manifest; {_REBUILD}")]


def _differences(check: ShardCheck, found: Sequence[Row]) -> list[Defect]:
    """Return the differences of the samples in a tar from those in the index."""
    if check.rows is None:
        return []
    defects = [
        check.defect(f"sample {was['key']} differs from the index; {_REBUILD}", was["offset"])
        for now, was in zip(found, check.rows, strict=False)
        if now != was
    ]
    if len(found) != len(check.rows):
        text = f"the tar has {len(found)} samples, the index {len(check.rows)}; {_REBUILD}"
        defects.append(check.defect(text))
    return defects


def _chosen(check: ShardCheck, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows to check; the hash of the shard as seed makes the choice repeatable."""
    if check.sample is None or check.sample >= len(rows):
        return rows
    chosen = random.Random(check.shard.sha256).sample(rows, check.sample)
    return sorted(chosen, key=lambda row: row["offset"])


def _check_samples(
    check: ShardCheck, rows: Sequence[Row], check_blob: Callable[[str, bytes], None]
) -> list[Defect]:
    """Compare the hash of each sample, and check it by `check_blob(key, its bytes)`."""
    defects = []
    with check.tar.open("rb") as file:
        for row in rows:
            file.seek(row["offset"])
            blob = file.read(row["length"])
            try:
                if xxhash.xxh3_64_intdigest(blob) != row["xxh3"]:
                    raise DataError("the hash differs from the index", fix=_REBUILD)
                check_blob(row["key"], blob)
            except DataError as error:
                text = str(error.at(f"sample {row['key']}"))
                defects.append(check.defect(text, row["offset"]))
    return defects


def _check_offsets(check: ShardCheck, rows: Sequence[Row]) -> list[Defect]:
    path = offsets_path(check.tar)
    if not path.is_file():
        return [check.index_defect(f"the file is missing; {_REPAIR}")]
    if load_offsets(check.tar).tolist() == offsets_of(rows):
        return []
    return [check.index_defect(f"the offsets are not those of the tar; {_REPAIR}")]
