"""Make third-party tars a shard set in place: examine them, and write an index and a manifest."""

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
from shards.format.index import SAMPLES, save_rows
from shards.format.manifest import MANIFEST, File, Foreign, Manifest, Shard, digest
from shards.format.schema import IMAGES, TASKS, png_size
from shards.format.tar import third_party_samples
from shards.format.third_party import SOURCE, sample_of
from shards.parallel import Runner, processes, run
from shards.raw.images import check_image
from shards.sources.classes import load_classes

_PICTURES = (*IMAGES, "jpeg")


@dataclass(frozen=True, slots=True)
class TarToExamine:
    """A tar to examine.

    Attributes:
        tar: Its path.
        manifest: The manifest of its set, still without the shards.
        members: The extensions of the members of a sample.
    """

    tar: Path
    manifest: Manifest
    members: Foreign


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
    """Make the `*.tar` in `folder` a shard set: write its index, its findings, and a manifest.

    The index leaves out the samples that the doctor rejects.

    Args:
        folder: The folder of the tars.
        classes: The path of a `classes.yaml`.
        image: The extension of the images. Default: the only image of a sample that is not a PNG.
        labels: The extension of the label maps. Default: the only PNG of a sample.
        instances: The extension of the instance-id maps (optional).
        runner: Examines the tars. Default: a process per CPU.
        report: Receives a line for everything that the user should know.

    Returns:
        The manifest.

    Raises:
        UsageError: The folder has no tars or holds a set that `build` made, or a member is missing
            or ambiguous.
        DataError: The classes or the tars cannot be used.
        Failed: The disk is full.
    """
    tars = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not tars:
        raise UsageError("the folder has no *.tar", where=folder, fix="give the folder of the tars")
    if (folder / MANIFEST).exists() and Manifest.load(folder).foreign is None:
        raise UsageError(
            "the folder is a shard set that build made", where=folder, fix="use it without index"
        )
    taxonomy, ignored, licenses = load_classes(classes)
    members = _find_members(tars[0], image, labels, instances, tuple(ignored))
    manifest = Manifest(
        source=SOURCE,
        taxonomy=taxonomy,
        tasks=TASKS if members.instances else ("semantic",),
        members=tuple(filter(None, (members.image, members.labels, members.instances))),
        licence=(licenses,),
        versions=versions(),
        inputs="",
        index=File(0, ""),
        shards=(),
        foreign=members,
    )
    pieces = [TarToExamine(tar, manifest, members) for tar in tars]
    with disk_errors(folder):
        return _index(folder, pieces, runner or processes(), report)


def _index(
    folder: Path, pieces: list[TarToExamine], runner: Runner, report: Callable[[str], None]
) -> Manifest:
    """Examine the tars and write the files of the set, the manifest last."""
    (folder / MANIFEST).unlink(missing_ok=True)
    examined = run(examine, pieces, runner, f"{folder.name}/*.tar", [1] * len(pieces))
    rows, repeated = _without_repeated_keys(examined)
    findings = [finding for tar in examined for finding in tar.findings] + repeated
    save_findings(folder, findings)
    report_findings(folder.name, folder, findings, report)
    save_rows(folder, rows)
    shards = tuple(
        replace(tar.shard, samples=len(of_tar)) for tar, of_tar in zip(examined, rows, strict=True)
    )
    manifest = replace(
        pieces[0].manifest,
        inputs=digest([shard.sha256 for shard in shards]),
        index=File.of(folder / SAMPLES),
        shards=shards,
    )
    if not manifest.samples:
        raise DataError(
            "no sample is intact", where=folder, fix=f"see {folder / FINDINGS} for the reasons"
        )
    manifest.save(folder)
    report(
        f"{folder}: {manifest.samples} samples in {len(shards)} tars are readable in place "
        f"for the tasks {', '.join(manifest.tasks)}"
    )
    return manifest


def examine(piece: TarToExamine) -> BuiltShard:
    """Read a whole tar and return the rows of its intact samples.

    Raises:
        DataError: The tar is damaged or compressed, or a member is repeated, is not a file
            KEY.EXTENSION, or leaves its folder.
    """
    keep_freed_memory()
    rows, findings = [], []
    with piece.tar.open("rb") as file:
        for key, found, start, end in third_party_samples(file, str(piece.tar)):
            doctor = Doctor(f"{piece.tar.name}/{key}")
            try:
                size = _examine_image(key, found, piece.members, doctor)
                decoded = sample_of(key, found, size, piece.manifest, piece.members)
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
                "width": decoded.width,
                "height": decoded.height,
                "segments": len(decoded.segments or ()),
                "instances": 0,
            })  # fmt: skip
    size = piece.tar.stat().st_size
    shard = Shard(piece.tar.name, size, sha256(piece.tar), len(rows))
    return BuiltShard(shard, rows, findings)


def _examine_image(
    key: str, found: dict[str, bytes], members: Foreign, doctor: Doctor
) -> tuple[int, int]:
    """Return the width and height of a sample's image.

    Raises:
        Reject: The image is damaged, a member is missing, or the map of labels is not a PNG.
    """
    for code, ext in ((7, members.image), (8, members.labels), (8, members.instances)):
        if ext and ext not in found:
            raise Reject(code, f"the sample has no member {ext}, only {', '.join(sorted(found))}")
    if png_size(found[members.labels]) is None:
        raise Reject(8, f"{key}.{members.labels} is not a PNG")
    _, width, height = check_image(found[members.image], f"{key}.{members.image}", None, doctor)
    return width, height


def _find_members(
    tar: Path,
    image: str | None,
    labels: str | None,
    instances: str | None,
    ignored: tuple[int, ...],
) -> Foreign:
    """Return the members of a sample; those that are not given come from the first sample of `tar`.

    Raises:
        UsageError: A given member is missing or of another kind, or a member that is not given is
            not unique.
    """
    with tar.open("rb") as file:
        _, found, *_ = next(third_party_samples(file, str(tar)), (None, {}))
    pictures = [ext for ext in found if _kind(ext) in _PICTURES]
    maps = [ext for ext in pictures if _kind(ext) == "png"]
    first = f"the first sample has the members {', '.join(found) or 'none'}"
    given = {"image": image, "labels": labels, "instances": instances}
    for name, ext in given.items():
        if ext and ext not in (pictures if name == "image" else maps):
            kinds = ", ".join(_PICTURES) if name == "image" else "png"
            raise UsageError(
                f"--{name} {ext} is missing or of another kind ({kinds}); {first}", where=tar
            )
    photographs = [ext for ext in pictures if ext not in maps]
    other_maps = [ext for ext in maps if ext not in given.values()]
    return Foreign(
        image=image or _only(photographs, "image", tar, first),
        labels=labels or _only(other_maps, "labels", tar, first),
        instances=instances,
        ignored=ignored,
    )


def _only(candidates: list[str], name: str, tar: Path, first: str) -> str:
    """Return the only candidate for a member that is not given."""
    if len(candidates) != 1:
        raise UsageError(first, where=tar, fix=f"choose one with --{name} EXTENSION")
    return candidates[0]


def _kind(ext: str) -> str:
    """Return the image format that an extension such as `labels.png` names."""
    return ext.rpartition(".")[2].lower()


def _without_repeated_keys(
    examined: list[BuiltShard],
) -> tuple[list[list[dict[str, Any]]], list[Finding]]:
    """Return the rows of each tar whose keys occur once, and a finding for each other row."""
    counts = Counter(row["key"] for tar in examined for row in tar.rows)
    repeated = [
        Finding(f"{tar.shard.name}/{row['key']}", 17, f"{counts[row['key']]} samples have this key")
        for tar in examined
        for row in tar.rows
        if counts[row["key"]] > 1
    ]
    return [[row for row in tar.rows if counts[row["key"]] == 1] for tar in examined], repeated
