"""Examine a third-party tar: find its samples, where they are, and what is wrong with them."""

from dataclasses import dataclass
from pathlib import Path

import xxhash

from shards.build.memory import keep_freed_memory
from shards.doctor import Doctor, Finding, Reject
from shards.files import leaves_folder, sha256
from shards.format.index import Row
from shards.format.label_maps import size_in
from shards.format.manifest import Foreign, Manifest, Shard
from shards.format.schema import NAME_BYTES, Sample, is_printable
from shards.format.third_party import sample_of
from shards.format.third_party_tar import StoredSample, third_party_samples
from shards.raw.images import check_image


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


@dataclass(frozen=True, slots=True)
class ExaminedTar:
    """What is in a tar.

    Attributes:
        shard: Its entry in the manifest.
        rows: The rows of its intact samples in the index of the set.
        findings: What the doctor found in its samples.
        skipped: The names of the files that belong to no sample.
    """

    shard: Shard
    rows: list[Row]
    findings: list[Finding]
    skipped: list[str]


def examine(piece: TarToExamine) -> ExaminedTar:
    """Read a whole tar and return the rows of its intact samples.

    Raises:
        DataError: The tar is damaged or compressed.
    """
    keep_freed_memory()
    rows, findings, skipped = [], [], []
    wanted = set(piece.manifest.members)
    with piece.tar.open("rb") as file:
        for sample in third_party_samples(file, str(piece.tar), skipped):
            if not wanted & sample.members.keys():
                skipped += [f"{sample.key}.{ext}" for ext in sample.members]
                continue
            doctor = Doctor(f"{piece.tar.name}/{sample.key}")
            try:
                decoded = _examine_sample(sample, piece, doctor)
            except Reject as reject:
                findings += [*doctor.findings, reject.of(doctor.file)]
                continue
            findings += doctor.findings
            length = sample.end - sample.start
            file.seek(sample.start)
            rows.append({
                "key": sample.key,
                "offset": sample.start,
                "length": length,
                "xxh3": xxhash.xxh3_64_intdigest(file.read(length)),
                "width": decoded.width,
                "height": decoded.height,
                "segments": len(decoded.segments or ()),
                "instances": 0,
            })  # fmt: skip
    size = piece.tar.stat().st_size
    shard = Shard(piece.tar.name, size, sha256(piece.tar), len(rows))
    return ExaminedTar(shard, rows, findings, skipped)


def _examine_sample(sample: StoredSample, piece: TarToExamine, doctor: Doctor) -> Sample:
    """Decode a sample.

    Raises:
        Reject: Its name cannot be a key, a member is missing or repeated, or the image or a map is
            damaged.
    """
    key, found = sample.key, sample.members
    if leaves_folder(key) or not is_printable(key):
        raise Reject(23, f"{key!r} leaves its folder, has control characters, or is not UTF-8")
    if len(key) > NAME_BYTES:
        raise Reject(23, f"{key[:40]!r}… has more than {NAME_BYTES} characters")
    if sample.repeated:
        raise Reject(17, f"{key}.{sample.repeated[0]} occurs twice in the sample")
    size = _examine_image(key, found, piece.members, doctor)
    return sample_of(key, found, size, piece.manifest, piece.members)


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
    size_in(found[members.labels], f"{key}.{members.labels}")
    _, width, height = check_image(found[members.image], f"{key}.{members.image}", None, doctor)
    return width, height
