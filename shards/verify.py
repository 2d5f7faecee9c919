"""Verify finished shard sets: hashes, index, and every sample."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from shards.errors import DataError, UsageError
from shards.files import is_url
from shards.format.index import SAMPLES, SampleIndex, save_offsets, save_rows, scan
from shards.format.manifest import MANIFEST, File, Manifest
from shards.parallel import Runner, processes, run
from shards.remote import RemoteFolder
from shards.text import say
from shards.verify_shard import Defect, ShardCheck, check_shard


@dataclass(frozen=True, slots=True)
class Location:
    """The location of a shard set.

    Attributes:
        folder: The folder with the set, or with copies of a remote set's manifest and index.
        name: The path or URL of the set for the report.
        remote: The server that has the set, or None.
    """

    folder: Path
    name: str
    remote: RemoteFolder | None = None

    @classmethod
    def of(cls, folder: Path) -> "Location":
        """Return the location of a set on this machine."""
        return cls(folder, str(folder))


def shard_sets(out: Path) -> list[Path]:
    """Return `out` itself if it is a shard set, or the shard sets in it.

    Raises:
        UsageError: There is no shard set.
    """
    folders = [out, *sorted(out.iterdir())] if out.is_dir() else []
    found = [folder for folder in folders if (folder / MANIFEST).is_file()]
    if not found:
        raise UsageError(
            f"the folder holds no finished shard set (no {MANIFEST})",
            where=out,
            fix="give the --out of a build, or the folder of one split",
        )
    return found


def verify(
    out: Path | str,
    *,
    sample: int | None = None,
    repair: bool = False,
    runner: Runner | None = None,
    report: Callable[[str], None] = say,
) -> None:
    """Verify a shard set, or each of the sets in a folder.

    Unless `sample` is given, all bytes are read: the hashes are compared with the manifest, the
    index is compared with the tars, and each sample is decoded, checked against its truth, encoded,
    and decoded again.

    Args:
        out: A folder or a URL. The shards of a URL are downloaded one after another.
        sample: Check only this number of samples per shard, always the same ones, and only their
            own hashes.
        repair: Write the index files (`samples.parquet` and `.tar.idx`) of a folder again if the
            tars have no defects.
        runner: Runs the checks of the shards. Default: a process per CPU.
        report: Receives one line per defect and per sound set.

    Raises:
        DataError: There are defects; the error counts them and names the first.
        UsageError: There is no shard set, or a URL is to be repaired.
        Failed: A server does not answer.
    """
    if repair and is_url(out):
        raise UsageError(
            "--repair works on folders only", where=out, fix="run the build of this URL again"
        )
    with _locations(out) as locations:
        defects = [
            defect
            for location in locations
            for defect in _verify_set(location, sample, repair, runner or processes(), report)
        ]
    if defects:
        first = defects[0]
        raise DataError(f"{len(defects)} problems; the first: {first}")


@contextmanager
def _locations(out: Path | str) -> Iterator[list[Location]]:
    """Yield the locations of the shard sets in a folder or below a URL.

    The files that were downloaded from a URL are removed at exit.
    """
    if not is_url(out):
        yield [Location.of(folder) for folder in shard_sets(Path(out))]
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield _fetch_sets(str(out).rstrip("/"), Path(temporary))


def _fetch_sets(url: str, temporary: Path) -> list[Location]:
    """Download the manifest and the index of the set at a URL, or of each set one folder below."""
    names = [name for name in RemoteFolder(url).files() if name.rpartition("/")[2] == MANIFEST]
    found = []
    for name in sorted(names):
        split = name.removesuffix(MANIFEST).rstrip("/")
        if len(PurePosixPath(split).parts) < 2 and ".." not in split:
            location = f"{url}/{split}".rstrip("/")
            folder, remote = temporary / split, RemoteFolder(location)
            folder.mkdir(exist_ok=True)
            remote.fetch(MANIFEST, folder / MANIFEST)
            remote.fetch(SAMPLES, folder / SAMPLES)
            found.append(Location(folder, location, remote))
    if not found:
        raise UsageError(
            f"the URL holds no finished shard set (no {MANIFEST})",
            where=url,
            fix="give the --out of a build, or the URL of one split",
        )
    return found


def _verify_set(
    location: Location,
    sample: int | None,
    repair: bool,
    runner: Runner,
    report: Callable[[str], None],
) -> list[Defect]:
    """Report and return the defects of a shard set, except those that were repaired."""
    try:
        manifest = Manifest.load(location.folder)
    except DataError as error:
        raise error.at(f"{location.name}/{MANIFEST}") from error
    index, defects = _load_index(location, manifest)
    if index is None and (manifest.foreign or sample is not None):
        return _reported(defects, report)  # only the index lists the samples to check
    checks = [
        ShardCheck(
            tar=location.folder / shard.name,
            where=f"{location.name}/{shard.name}",
            shard=shard,
            rows=None if index is None else index.rows(number),
            manifest=manifest,
            sample=sample,
            remote=location.remote,
        )
        for number, shard in enumerate(manifest.shards)
    ]
    samples = [shard.samples for shard in manifest.shards]
    found = [
        defect
        for defects_of_shard in run(check_shard, checks, runner, location.folder.name, samples)
        for defect in defects_of_shard
    ]
    defects += found + _repeated_keys(location, index)
    if repair and defects and not any(defect.in_tar for defect in found):
        _rebuild_index(location.folder, manifest)
        report(f"{location.name}: {SAMPLES} and {len(checks)} .tar.idx were rebuilt from the tars")
        return []
    if not defects:
        extent = "all bytes" if sample is None else f"{sample} samples per shard"
        report(
            f"{location.name}: {manifest.samples} samples in {len(checks)} shards are sound "
            f"({extent})"
        )
    return _reported(defects, report)


def _reported(defects: list[Defect], report: Callable[[str], None]) -> list[Defect]:
    for defect in defects:
        report(str(defect))
    return defects


def _repeated_keys(location: Location, index: SampleIndex | None) -> list[Defect]:
    counts = Counter(index.key if index else ())
    return [
        Defect(f"{location.name}/{SAMPLES}", f"the key {key} occurs {count} times")
        for key, count in counts.items()
        if count > 1
    ]


def _load_index(location: Location, manifest: Manifest) -> tuple[SampleIndex | None, list[Defect]]:
    """Return the index of a set, or None and the defect that makes it unusable."""
    path, where = location.folder / SAMPLES, f"{location.name}/{SAMPLES}"
    fix = "index the folder again" if manifest.foreign else "--repair writes it again"
    if not path.is_file():
        return None, [Defect(where, f"the file is missing; {fix}")]
    if File.of(path) != manifest.index:
        return None, [Defect(where, f"the file differs from the manifest; {fix}")]
    try:
        return SampleIndex.load(location.folder, manifest), []
    except DataError as error:
        return None, [Defect(where, f"{error.problem.what}; {fix}")]


def _rebuild_index(folder: Path, manifest: Manifest) -> None:
    rows: list[Sequence[dict]] = []
    for shard in manifest.shards:
        rows.append(scan(folder / shard.name))
        save_offsets(folder / shard.name, rows[-1])
    save_rows(folder, rows)
    index = File.of(folder / SAMPLES)
    if index != manifest.index:  # another version of pyarrow may compress to other bytes
        replace(manifest, index=index).save(folder)
