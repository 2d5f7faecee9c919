"""Whether a finished shard set is whole and true: hashes, index, and every sample's round trip."""

import io
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import xxhash
from PIL import Image

from shards.errors import DataError, UsageError
from shards.files import is_url, sha256
from shards.format import foreign
from shards.format.codec import check_round_trip, decode
from shards.format.index import (
    SAMPLES,
    SampleIndex,
    load_offsets,
    members,
    offsets_path,
    save_offsets,
    save_rows,
    scan,
)
from shards.format.manifest import MANIFEST, File, Manifest, Shard
from shards.format.schema import MAX_PIXELS, Sample
from shards.parallel import Runner, processes, run
from shards.raw.images import shown_size
from shards.remote import RemoteFolder

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file, and at which byte of it if it is one place."""

    file: Path
    text: str
    offset: int | None = None

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.file}{place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Check:
    """A shard to look at. `rows` are the index's, None where that is lost. `sample` samples are
    read, None reads all of it."""

    tar: Path
    shard: Shard
    rows: list[Row] | None
    manifest: Manifest
    sample: int | None


def shard_sets(out: Path) -> list[Path]:
    """`out` itself, or the splits in it. Raises UsageError where there is no shard set."""
    sets = [out, *sorted(out.iterdir())] if out.is_dir() else []
    found = [folder for folder in sets if (folder / MANIFEST).is_file()]
    if not found:
        raise UsageError(
            f"{out} holds no finished shard set (no {MANIFEST}); give the --out of a build, "
            "or the folder of one split"
        )
    return found


def verify(
    out: Path | str,
    *,
    sample: int | None = None,
    repair: bool = False,
    runner: Runner | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Check the shard set in `out`, or every one of its splits; of a URL, shard by shard.

    Without `sample` all bytes are read: hashes against the manifest, the index against the tars,
    and each sample decoded, held against its truth, encoded and decoded again. With it, that many
    samples a shard, always the same ones, and only their own hashes. `repair` writes the index
    files (`samples.parquet`, `.tar.idx`) anew from tars that are as built, in a folder. Raises
    DataError that counts the problems and names the first one; `report` hears of each. Raises
    Failed where a server refuses.
    """
    if repair and is_url(out):
        raise UsageError(f"--repair is for a folder, {out} is a URL; run its build again instead")
    runner = runner or processes()
    if not is_url(out):
        _verify_sets(dict.fromkeys(shard_sets(Path(out))), sample, repair, runner, report)
        return
    url = str(out).rstrip("/")
    with tempfile.TemporaryDirectory() as here:
        try:
            targets = _fetched(url, Path(here))
            _verify_sets(
                targets, sample, repair, runner, lambda line: report(line.replace(here, url))
            )
        except DataError as error:
            raise DataError(str(error).replace(here, url)) from error


def _verify_sets(
    targets: dict[Path, RemoteFolder | None],
    sample: int | None,
    repair: bool,
    runner: Runner,
    report: Callable[[str], None],
) -> None:
    """Check shard sets, each in a folder and perhaps behind a server."""
    problems = [
        problem
        for folder, target in targets.items()
        for problem in _verify_set(folder, sample, repair, runner, report, target)
    ]
    if problems:
        raise DataError(f"{len(problems)} problems; the first: {problems[0]}")


def _fetched(url: str, here: Path) -> dict[Path, RemoteFolder]:
    """Manifest and index of each shard set below a URL, in a folder in `here`, and its target."""
    names = [name for name in RemoteFolder(url).files() if name.rpartition("/")[2] == MANIFEST]
    found = {}
    for name in sorted(names):
        split = name.removesuffix(MANIFEST).rstrip("/")
        if len(PurePosixPath(split).parts) < 2 and ".." not in split:  # it, or a split in it
            folder, target = here / split, RemoteFolder(f"{url}/{split}".rstrip("/"))
            folder.mkdir(exist_ok=True)
            target.fetch(MANIFEST, folder / MANIFEST)
            target.fetch(SAMPLES, folder / SAMPLES)
            found[folder] = target
    if not found:
        raise UsageError(f"{url} holds no finished shard set (no {MANIFEST})")
    return found


def _check_fetched(check: Check, target: RemoteFolder) -> list[Problem]:
    """`check_shard` of one that lies behind a server; nothing of it is left here."""
    files = check.tar, offsets_path(check.tar)
    try:
        for path in files:
            target.fetch(path.name, path)
        return check_shard(check)
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def _verify_set(
    folder: Path,
    sample: int | None,
    repair: bool,
    runner: Runner,
    report: Callable[[str], None],
    target: RemoteFolder | None,
) -> list[Problem]:
    manifest = Manifest.load(folder)
    index, problems = _load_index(folder, manifest)
    if index is None and (manifest.foreign or sample is not None):  # there is nothing to go by
        return _told(problems, report)
    checks = [
        Check(
            tar=folder / shard.name,
            shard=shard,
            rows=index and index.rows(number),
            manifest=manifest,
            sample=sample,
        )
        for number, shard in enumerate(manifest.shards)
    ]
    work = partial(_check_fetched, target=target) if target else check_shard
    found = run(work, checks, runner, folder.name, [one.shard.samples for one in checks])
    damaged = [problem for one in found for problem in one if problem.file.suffix == ".tar"]
    problems += [problem for one in found for problem in one]
    if index is not None:
        twice = [key for key, count in Counter(index.key).items() if count > 1]
        problems += [Problem(folder / SAMPLES, f"the key {key} occurs twice") for key in twice]
    if repair and problems and not damaged:
        _rebuild_index(folder, manifest)
        report(f"{folder}: {SAMPLES} and {len(checks)} .tar.idx are written anew from the tars")
        return []
    if not problems:
        extent = "all bytes" if sample is None else f"{sample} samples a shard"
        report(f"{folder}: {manifest.samples} samples in {len(checks)} shards are sound ({extent})")
    return _told(problems, report)


def _told(problems: list[Problem], report: Callable[[str], None]) -> list[Problem]:
    for problem in problems:
        report(str(problem))
    return problems


def _load_index(folder: Path, manifest: Manifest) -> tuple[SampleIndex | None, list[Problem]]:
    path = folder / SAMPLES
    fix = "index the folder again" if manifest.foreign else "--repair makes it anew"
    if not path.is_file():
        return None, [Problem(path, f"is missing; {fix}")]
    if File.of(path) != manifest.index:
        return None, [Problem(path, f"is not as built; {fix}")]
    return SampleIndex.load(folder), []


def _rebuild_index(folder: Path, manifest: Manifest) -> None:
    rows = [scan(folder / shard.name) for shard in manifest.shards]
    for shard, of_shard in zip(manifest.shards, rows, strict=True):
        save_offsets(folder / shard.name, of_shard)
    save_rows(folder, rows)
    index = File.of(folder / SAMPLES)
    if index != manifest.index:  # as where another version of pyarrow compresses otherwise
        replace(manifest, index=index).save(folder)


def check_shard(check: Check) -> list[Problem]:
    """The problems of one shard and its `.tar.idx`, in the order of the bytes."""
    tar, shard, manifest = check.tar, check.shard, check.manifest
    if not tar.is_file():
        return [Problem(tar, "is missing; build the set again")]
    if (size := tar.stat().st_size) != shard.bytes:
        return [Problem(tar, f"has {size} bytes, built were {shard.bytes}", min(size, shard.bytes))]
    rows, problems = check.rows, []
    if check.sample is None:
        if not manifest.foreign:  # else the hash says as much
            try:
                rows = scan(tar)
            except DataError as error:
                return [Problem(tar, str(error).removeprefix(f"{tar}: "))]
            problems = _differences(tar, rows, check.rows)
        if not problems and sha256(tar) != shard.sha256:
            problems.append(Problem(tar, "its hash is not that of the manifest; build it again"))
    elif check.sample < len(rows):
        rows = random.Random(shard.sha256).sample(rows, check.sample)
        rows.sort(key=lambda row: row["offset"])
    with tar.open("rb") as file:
        for row in rows:
            file.seek(row["offset"])
            blob = file.read(row["length"])
            try:
                if xxhash.xxh3_64_intdigest(blob) != row["xxh3"]:
                    raise DataError("its bytes are not as built; build the set again")
                if manifest.foreign:
                    decode_image(foreign.load(blob, manifest))
                else:
                    classes = len(manifest.taxonomy)
                    check_sample(row["key"], members(blob), manifest.members, classes)
            except DataError as error:
                problems.append(Problem(tar, f"sample {row['key']}: {error}", row["offset"]))
    if manifest.foreign:
        return problems
    return problems + _check_offsets(tar, rows if check.sample is None else check.rows)


def _differences(tar: Path, found: list[Row], built: list[Row] | None) -> list[Problem]:
    """Where the samples of a tar are not those of the index."""
    if built is None:
        return []
    problems = [
        Problem(tar, f"sample {was['key']} is not as built; build the set again", was["offset"])
        for now, was in zip(found, built, strict=False)
        if now != was
    ]
    if len(found) != len(built):
        problems.append(Problem(tar, f"holds {len(found)} samples, built were {len(built)}"))
    return problems


def _check_offsets(tar: Path, rows: list[Row]) -> list[Problem]:
    path = offsets_path(tar)
    if not path.is_file():
        return [Problem(path, "is missing; --repair makes it anew")]
    end = rows[-1]["offset"] + rows[-1]["length"] if rows else 0
    if load_offsets(tar).tolist() == [*(row["offset"] for row in rows), end]:
        return []
    return [Problem(path, "is not the index of its tar; --repair makes it anew")]


def check_sample(key: str, found: dict[str, bytes], names: tuple[str, ...], classes: int) -> None:
    """Decode a sample, hold it against its own truth, and send it round: encode, decode, compare.

    Raises DataError where it lacks one of the members `names` or has another, where its image
    differs in size from its JSON or declares too many pixels, where maps and entries contradict,
    or where something does not come back.
    """
    if found.keys() != set(names):
        raise DataError(f"has the members {sorted(found)}, the set has {sorted(names)}")
    sample = decode(key, found)
    decode_image(sample)
    _check_truth(sample, classes)
    check_round_trip(sample, found)


def decode_image(sample: Sample) -> np.ndarray:
    """The image of a sample, u8 RGB `[H, W, 3]`, upright. Raises DataError where its header is
    damaged, differs from the JSON or declares too many pixels, or where it does not decode."""
    declared = sample.width, sample.height
    try:
        with Image.open(io.BytesIO(sample.image)) as picture:
            size = shown_size(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image has no sound header ({error})") from error
    if size != declared or size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"the image declares {size[0]}x{size[1]} pixels, its truth "
            f"{declared[0]}x{declared[1]}; at most {MAX_PIXELS} are read"
        )
    image = cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise DataError("the image does not decode")
    return image


def _check_truth(sample: Sample, classes: int) -> None:
    segments, instances = sample.segments or [], sample.instances or []
    for name, entries, truth in (
        ("segments", sample.segments, sample.segments_map),
        ("instances", sample.instances, sample.layers),
    ):
        if (entries is None) != (truth is None):
            raise DataError(f"{name} are in the json or in {name}.png, but not in both")
    for entry in (*segments, *instances):
        if not 0 <= entry.category < classes:
            raise DataError(f"entry {entry.id} has category {entry.category} of {classes}")
    if sample.segments_map is not None and sample.segments_map.max(initial=0) > len(segments):
        raise DataError(f"segments.png has more values than the {len(segments)} entries")
    if sample.semantic is not None and sample.semantic.max(initial=0) > classes:
        raise DataError(f"semantic.png has values past the {classes} classes")
    if sample.layers is None:
        return
    places = [(entry.layer, entry.value) for entry in instances]
    twice = [place for place, count in Counter(places).items() if count > 1 and place[1]]
    drawn = {
        (layer, int(value))
        for layer, values in enumerate(sample.layers)
        for value in np.flatnonzero(np.bincount(values.ravel()))
        if value
    }
    if twice or drawn - set(places):
        place = min(twice or drawn - set(places))
        raise DataError(f"instances.png: layer and value {place} belong to no or several entries")
