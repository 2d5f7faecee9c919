"""Tars that others have written, made a shard set where they are: examined, listed, indexed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from shards.build.memory import keep_freed_memory
from shards.build.plan import versions
from shards.build.writer import BuiltShard
from shards.doctor import FINDINGS, Doctor, Finding, Reject, report_findings, save_findings
from shards.errors import DataError, UsageError
from shards.files import disk_errors, sha256
from shards.format.foreign import SOURCE, sample, samples
from shards.format.index import SAMPLES, save_rows
from shards.format.manifest import MANIFEST, File, Foreign, Manifest, Shard, digest
from shards.format.schema import IMAGES, TASKS, png_size
from shards.parallel import Runner, processes, run
from shards.raw.images import check_image
from shards.sources.classes import load_classes

_PICTURES = (*IMAGES, "jpeg")


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar to examine; `manifest` is that of its set but for the shards."""

    tar: Path
    manifest: Manifest


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
    with disk_errors(folder):
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
    shards = tuple(
        replace(one.shard, samples=len(of)) for one, of in zip(examined, rows, strict=True)
    )
    inputs = digest([shard.sha256 for shard in shards])
    manifest = replace(manifest, inputs=inputs, index=File.of(folder / SAMPLES), shards=shards)
    if not manifest.samples:
        raise DataError(f"{folder}: no sample is sound; {folder / FINDINGS} says why")
    manifest.save(folder)
    report(
        f"{folder}: {manifest.samples} samples in {len(shards)} tars are readable where they are; "
        f"serves {', '.join(manifest.tasks)}"
    )
    return manifest


def examine(piece: Tar) -> BuiltShard:
    """Read all of a tar; the rows are those of its sound samples.

    Raises DataError if it is damaged, compressed or hostile.
    """
    keep_freed_memory()
    rows, findings = [], []
    with piece.tar.open("rb") as file:
        for key, found, start, end in samples(file, str(piece.tar)):
            doctor = Doctor(f"{piece.tar.name}/{key}")
            try:
                size = _examine_image(key, found, piece.manifest.foreign, doctor)
                made = sample(key, found, piece.manifest, size)
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
                "width": made.width,
                "height": made.height,
                "segments": len(made.segments or ()),
                "instances": 0,
            })  # fmt: skip
    size = piece.tar.stat().st_size
    shard = Shard(piece.tar.name, size, sha256(piece.tar), len(rows))
    return BuiltShard(shard, rows, findings)


def _examine_image(
    key: str, found: dict[str, bytes], foreign: Foreign, doctor: Doctor
) -> tuple[int, int]:
    """Width and height of a sample's image, rejected if it or another member is not there."""
    for code, ext in ((7, foreign.image), (8, foreign.labels), (8, foreign.instances)):
        if ext and ext not in found:
            raise Reject(code, f"the sample has no member {ext}, but {', '.join(sorted(found))}")
    if png_size(found[foreign.labels]) is None:
        raise Reject(8, f"{key}.{foreign.labels} is no PNG")
    _, width, height = check_image(found[foreign.image], f"{key}.{foreign.image}", None, doctor)
    return width, height


def _meaning(
    tar: Path,
    image: str | None,
    labels: str | None,
    instances: str | None,
    ignored: tuple[int, ...],
) -> Foreign:
    """What the members of the first sample are, where it is not given."""
    with tar.open("rb") as file:
        _, found, *_ = next(samples(file, str(tar)), (None, {}))
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


def _without_copies(examined: list[BuiltShard]) -> tuple[list[list[dict[str, Any]]], list[Finding]]:
    """The rows of each tar but those of keys that occur more than once, and the findings."""
    counts = Counter(row["key"] for one in examined for row in one.rows)
    twice = [
        Finding(f"{one.shard.name}/{row['key']}", 17, f"{counts[row['key']]} have this key")
        for one in examined
        for row in one.rows
        if counts[row["key"]] > 1
    ]
    return [[row for row in one.rows if counts[row["key"]] == 1] for one in examined], twice
