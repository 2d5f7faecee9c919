"""Tars that others have written, read where they are: nothing of them is copied or changed.

A sample is the members of one key that stand together, as `webdataset` has it: an image, a map of
labels, and perhaps a map of the things' numbers, with the meaning that they have for `build folder`
(docs/folder.md). `index_tars` examines them all, and writes what makes a shard set of their folder.
"""

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import xxhash

from shards.doctor import FINDINGS, Doctor, Finding, Reject, report_findings, save_findings
from shards.errors import DataError, UsageError
from shards.files import sha256, told_of_disk
from shards.index import BLOCK, SAMPLES, save_rows
from shards.manifest import MANIFEST, File, Foreign, Manifest, Shard, digest
from shards.parallel import Runner, processes, run
from shards.plan import versions
from shards.raw import check_image, keep_memory
from shards.schema import IMAGES, TASKS, Record, Sample, png_size, rights_of, sample_of
from shards.sources.classes import load_classes
from shards.sources.label_maps import labels_in, truth_of_maps

SOURCE = "webdataset"
_PICTURES = (*IMAGES, "jpeg")


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar to examine; `manifest` is that of its set but for the shards."""

    tar: Path
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Examined:
    """What a tar is, the rows of its sound samples, and what the doctor found."""

    shard: Shard
    rows: list[dict[str, Any]]
    findings: list[Finding]


def index_tars(
    folder: Path,
    classes: Path,
    *,
    image: str | None = None,
    labels: str | None = None,
    instances: str | None = None,
    runner: Runner | None = None,
    report: Callable[[str], None] = print,
) -> Manifest:
    """Make the `*.tar` in `folder` a shard set: `samples.parquet`, `findings.jsonl`, a manifest.

    `classes` is a `classes.yaml`. `image`, `labels` and `instances` are extensions of members; the
    first two need not be given where a sample has one image that is no PNG, and one PNG besides.
    Samples that the doctor rejects are not in the index. Raises UsageError for a folder without
    tars or with a set that `build` made, and for members that are not there; DataError for classes
    or tars that cannot be used; Failed where the disk is full.
    """
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not tars:
        raise UsageError(f"{folder} holds no *.tar; give the folder of the tars")
    if (folder / MANIFEST).exists() and Manifest.load(folder).foreign is None:
        raise UsageError(f"{folder} is a shard set that build made; there is nothing to index")
    taxonomy, ignored, licence = load_classes(classes)
    foreign = _meaning(tars[0], image, labels, instances, tuple(ignored))
    manifest = Manifest(
        source=SOURCE,
        taxonomy=taxonomy,
        tasks=TASKS if foreign.instances else ("semantic",),
        members=tuple(filter(None, (foreign.image, foreign.labels, foreign.instances))),
        licence=(licence,),
        versions=versions(),
        inputs="",
        index=File(0, ""),
        shards=(),
        foreign=foreign,
    )
    with told_of_disk(folder):
        return _index(folder, tars, manifest, runner or processes(), report)


def _index(
    folder: Path,
    tars: list[Path],
    manifest: Manifest,
    runner: Runner,
    report: Callable[[str], None],
) -> Manifest:
    (folder / MANIFEST).unlink(missing_ok=True)
    pieces = [Tar(tar, manifest) for tar in tars]
    examined = run(examine, pieces, runner, f"{folder.name}/*.tar", [1] * len(tars))
    rows, twice = _without_copies(examined)
    findings = [finding for one in examined for finding in one.findings] + twice
    save_findings(folder, findings)
    report_findings(folder.name, folder, findings, report)
    save_rows(folder, rows)
    counts = Counter(row["shard"] for row in rows)
    shards = tuple(replace(one.shard, samples=counts[i]) for i, one in enumerate(examined))
    if not rows:
        raise DataError(f"{folder}: no sample is sound; {folder / FINDINGS} says why")
    inputs = digest([shard.sha256 for shard in shards])
    manifest = replace(manifest, inputs=inputs, index=File.of(folder / SAMPLES), shards=shards)
    manifest.save(folder)
    report(
        f"{folder}: {len(rows)} samples in {len(shards)} tars are readable where they are; "
        f"serves {', '.join(manifest.tasks)}"
    )
    return manifest


def examine(piece: Tar) -> Examined:
    """Read all of a tar. Raises DataError if it is damaged, compressed or hostile."""
    keep_memory()
    rows, findings = [], []
    with piece.tar.open("rb") as file:
        for key, found, start, end in _samples(file, str(piece.tar)):
            doctor = Doctor(f"{piece.tar.name}/{key}")
            try:
                record = _record(key, found, piece.manifest, doctor)
            except Reject as reject:
                findings += [*doctor.findings, reject.of(doctor.file)]
                continue
            findings += doctor.findings
            file.seek(start)
            rows.append({
                "key": key,
                "offset": start,
                "length": end - start,
                "xxh3": xxhash.xxh3_64_intdigest(file.read(end - start)),
                "width": record.width,
                "height": record.height,
                "segments": len(record.segments or ()),
                "instances": 0,
            })  # fmt: skip
    size = piece.tar.stat().st_size
    shard = Shard(piece.tar.name, size, sha256(piece.tar), len(rows))
    return Examined(shard, rows, findings)


def load(blob: bytes, manifest: Manifest) -> Sample:
    """A sample from its bytes, which are those that were examined. Raises DataError else."""
    [(key, found, *_)] = _samples(io.BytesIO(blob), "a sample")
    return sample_of(_record(key, found, manifest, None))


def _samples(file: BinaryIO, name: str) -> Iterator[tuple[str, dict[str, bytes], int, int]]:
    """Key, members by extension, and first and last byte of every sample in a tar."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for key, group in groupby(_members(archive, name), key=itemgetter(0)):
                found, start, end = {}, None, 0
                for _, ext, member in group:
                    if ext in found:
                        raise DataError(f"{name}: {key}.{ext} occurs twice in a sample; rename it")
                    found[ext] = archive.extractfile(member).read()
                    start = member.offset if start is None else start
                    end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                yield key, found, start, end
    except tarfile.TarError as error:
        raise DataError(f"{name} is no plain tar ({error}); unpack or get it anew") from error


def _members(archive: tarfile.TarFile, name: str) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, extension and header of the files in a tar. Raises DataError for a hostile name."""
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise DataError(f"{name}: {member.name!r} leaves its folder; do not use this file")
        if member.isdir():
            continue
        stem, _, ext = path.name.partition(".")
        if not member.isreg() or member.issparse() or not stem or not ext:
            raise DataError(f"{name}: {member.name!r} is no file KEY.EXTENSION; take it out")
        yield str(path.with_name(stem)), ext, member
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
        raise DataError(f"{name}: damaged tar header at byte {archive.offset}; get it anew")


def _record(key: str, found: dict[str, bytes], manifest: Manifest, doctor: Doctor | None) -> Record:
    """A sample in our terms, rejected if it is not sound. Without a doctor its image is not
    examined: the map of labels says its size."""
    foreign, taxonomy = manifest.foreign, manifest.taxonomy
    for code, ext in ((7, foreign.image), (8, foreign.labels), (8, foreign.instances)):
        if ext and ext not in found:
            raise Reject(code, f"the sample has no member {ext}, but {', '.join(sorted(found))}")
    image, size = found[foreign.image], png_size(found[foreign.labels])
    if size is None:
        raise Reject(8, f"{key}.{foreign.labels} is no PNG")
    if doctor:
        _, *shown = check_image(image, f"{key}.{foreign.image}", None, doctor)
        size = tuple(shown)
    maps = [
        (f"{key}.{ext}", labels_in(io.BytesIO(found[ext]), f"{key}.{ext}", size))
        for ext in (foreign.labels, foreign.instances)
        if ext
    ]
    labels = dict.fromkeys(foreign.ignored, 0)
    labels |= {c.id: n for n, c in enumerate(taxonomy.categories, start=1)}
    width, height = size
    return Record(
        key=key,
        image=image,
        ext=foreign.image,
        file_name=f"{key}.{foreign.image}",
        source=SOURCE,
        image_id=key,
        width=width,
        height=height,
        rights=rights_of(*manifest.licence),
        **truth_of_maps(labels, sum(taxonomy.things), maps[0], maps[1] if maps[1:] else None),
    )


def _meaning(
    tar: Path,
    image: str | None,
    labels: str | None,
    instances: str | None,
    ignored: tuple[int, ...],
) -> Foreign:
    """What the members of the first sample are, where it is not given."""
    with tar.open("rb") as file:
        _, found, *_ = next(_samples(file, str(tar)), (None, {}))
    pictures = [ext for ext in found if _kind(ext) in _PICTURES]
    maps = [ext for ext in pictures if _kind(ext) == "png"]
    starts = f"{tar} starts with the members {', '.join(found) or 'none'}"
    given = {"image": image, "labels": labels, "instances": instances}
    for name, ext in given.items():
        if ext and ext not in (pictures if name == "image" else maps):
            kinds = ", ".join(_PICTURES) if name == "image" else "png"
            raise UsageError(f"--{name} {ext} is not there or of another kind ({kinds}); {starts}")
    free = {
        "image": [ext for ext in pictures if ext not in maps],
        "labels": [ext for ext in maps if ext not in given.values()],
    }
    for name, candidates in free.items():
        if not given[name]:
            if len(candidates) != 1:
                raise UsageError(f"{starts}; say which is for {name}: --{name} EXTENSION")
            given[name] = candidates[0]
    return Foreign(**given, ignored=ignored)


def _kind(ext: str) -> str:
    return ext.rpartition(".")[2].lower()


def _without_copies(examined: list[Examined]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The rows of all tars but those of keys that occur more than once, and the findings."""
    rows = [{**row, "shard": i} for i, one in enumerate(examined) for row in one.rows]
    counts = Counter(row["key"] for row in rows)
    names = [one.shard.name for one in examined]
    twice = [
        Finding(f"{names[row['shard']]}/{row['key']}", 17, f"{counts[row['key']]} have this key")
        for row in rows
        if counts[row["key"]] > 1
    ]
    return [row for row in rows if counts[row["key"]] == 1], twice
