"""Build shard sets from a raw data set: a pure function of the data, in parallel, resumable."""

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import xxhash

from shards.errors import DataError, UsageError
from shards.files import sha256
from shards.index import SAMPLES, offsets_path, save_rows
from shards.manifest import MANIFEST, File, Manifest, digest
from shards.output import claim, clear, locked
from shards.parallel import run_jobs
from shards.schema import SCHEMA, TASKS, image_ext
from shards.sources import coco
from shards.sources.split import Item, Split
from shards.writer import STATE, Job

SOURCES = {"coco": coco}
SHARD_BYTES = 128 * 2**20  # of raw files, at most, on average


def build(
    source: str,
    root: Path,
    out: Path,
    *,
    splits: list[str] | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    tasks: list[str] | None = None,
    shards: int | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Make `out/<split>/` a shard set of every split of the raw data set under `root`.

    `limit` keeps the first images by key, `jobs` is the number of processes (default: the CPUs),
    `tasks` restricts the truth (default: all there is), `shards` fixes their number (default: the
    least power of two with at most 128 MiB of raw files each). Apart from `jobs`, the bytes are a
    function of these, the raw files and the library versions. Run again after an interruption it
    goes on, and run again after a change of data or settings it brings `out` up to date.

    Returns, for every split, its samples, shards, bytes, tasks, members and fingerprint. Raises
    UsageError for wrong arguments or folders, DataError for raw data that cannot be built.
    """
    module = _check(source, root, limit, jobs, tasks, shards)
    try:
        names = splits or module.splits(root, report)
        claim(out, source)
        raw = [module.read(root, name, tasks or None, report) for name in names]
        plans = [_plan(split, limit, shards) for split in raw]
        if len({plan.split.taxonomy for plan in plans}) > 1:
            report("the splits have different categories; build with --tasks to make them agree")
        return {
            plan.split.name: _build_split(
                plan, out / plan.split.name, jobs or len(os.sched_getaffinity(0)), report
            )
            for plan in plans
        }
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(
                f"{out}: the disk is full; free space and run again to go on"
            ) from error
        raise UsageError(
            f"{error.filename or out}: {error.strerror or error}; mend it and run again to go on"
        ) from error


@dataclass(frozen=True)
class _Plan:
    """What goes into which shard of a split; `inputs` is a digest of all the bytes depend on."""

    split: Split
    ext: str
    groups: list[list[Item]]
    inputs: str
    changed: int  # newest raw file, ns since epoch

    def jobs(self, folder: Path) -> list[Job]:
        return [
            Job(folder / f"{i:06d}.tar", group, self.inputs, self.changed)
            for i, group in enumerate(self.groups)
        ]


def _plan(split: Split, limit: int | None, shards: int | None) -> _Plan:
    items = sorted(split.items, key=lambda item: item.key)
    for one, other in itertools.pairwise(items):
        if one.key == other.key:
            raise DataError(
                f"{one.file_name} and {other.file_name} have the same key {one.key}; rename one"
            )
    items = items[:limit]
    exts = {image_ext(item.file_name): item.file_name for item in items}
    if len(exts) > 1:
        raise DataError(
            f"the images have several formats ({', '.join(exts.values())}); convert them to one"
        )
    stats = [[_stat(path) for path in item.files] for item in items]
    count = shards or _shard_count(sum(stat.st_size for files in stats for stat in files))
    groups: list[list[Item]] = [[] for _ in range(count)]
    for item in items:
        groups[xxhash.xxh3_64_intdigest(item.key.encode()) % count].append(item)
    inputs = digest(
        [
            *(SCHEMA, _versions(), split.source, split.taxonomy.to_json(), split.tasks, count),
            [sha256(path) for path in split.annotations],
            [(i.key, [s.st_size for s in files]) for i, files in zip(items, stats, strict=True)],
        ]
    )
    # ctime, for a file that is swapped for an older one is new to us all the same
    changed = max(stat.st_ctime_ns for files in stats for stat in files)
    return _Plan(split, next(iter(exts)), groups, inputs, changed)


def _shard_count(size: int) -> int:
    return 1 << (max(1, -(-size // SHARD_BYTES)) - 1).bit_length()


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; add it, or take it out of the annotations") from None


def _versions() -> dict[str, str]:
    named = {name: version(name) for name in ("pyarrow", "pycocotools", "webdataset")}
    return {"opencv": cv2.__version__, **named}


def _build_split(
    plan: _Plan, folder: Path, jobs: int, report: Callable[[str], None]
) -> dict[str, Any]:
    name = plan.split.name
    manifest = _finished(plan, folder)
    if manifest:
        report(f"{name}: {folder} holds this build already, nothing to do")
        return _summary(manifest)
    with locked(folder):
        if (folder / MANIFEST).exists():
            report(f"{name}: {folder} holds an older build, bringing it up to date")
        (folder / MANIFEST).unlink(missing_ok=True)
        todo = plan.jobs(folder)
        clear(folder, keep={job.tar.name for job in todo})
        made = run_jobs(todo, jobs, name)
        save_rows(
            folder, [{**row, "shard": i} for i, job in enumerate(todo) for row in made[job.tar][1]]
        )
        manifest = Manifest(
            source=plan.split.source,
            taxonomy=plan.split.taxonomy,
            tasks=plan.split.tasks,
            members=(plan.ext, "json", *plan.split.truths),
            licence=plan.split.licence,
            versions=_versions(),
            inputs=plan.inputs,
            index=File.of(folder / SAMPLES),
            shards=tuple(made[job.tar][0] for job in todo),
        )
        manifest.save(folder)
        shutil.rmtree(folder / STATE)
    size_mib = sum(shard.bytes for shard in manifest.shards) / 2**20
    report(
        f"{folder}: {manifest.samples} images in {len(manifest.shards)} shards, "
        f"{size_mib:.1f} MiB; serves {', '.join(manifest.tasks)}"
    )
    return _summary(manifest)


def _finished(plan: _Plan, folder: Path) -> Manifest | None:
    """The manifest, if the folder holds the finished build of this plan."""
    try:
        manifest = Manifest.load(folder)
        written = (folder / MANIFEST).stat().st_mtime_ns
        sizes = [(folder / shard.name).stat().st_size for shard in manifest.shards]
        indices = [offsets_path(folder / shard.name) for shard in manifest.shards]
    except (ValueError, FileNotFoundError):
        return None
    same = manifest.inputs == plan.inputs and written > plan.changed
    whole = sizes == [shard.bytes for shard in manifest.shards]
    there = all(path.is_file() for path in (folder / SAMPLES, *indices))
    return manifest if same and whole and there else None


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "tasks": list(manifest.tasks),
        "members": list(manifest.members),
        "fingerprint": manifest.fingerprint,
    }


def _check(
    source: str,
    root: Path,
    limit: int | None,
    jobs: int | None,
    tasks: list[str] | None,
    shards: int | None,
) -> ModuleType:
    """The source module. Raises UsageError naming the wrong argument."""
    if source not in SOURCES:
        raise UsageError(f"unknown source {source!r}; known are {', '.join(SOURCES)}")
    if not root.is_dir():
        raise UsageError(f"--root {root} is not a folder; give the folder of the raw data set")
    for name, value in {"limit": limit, "jobs": jobs, "shards": shards}.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is too small; give 1 or more")
    if wrong := set(tasks or ()) - set(TASKS):
        raise UsageError(f"unknown task {wrong.pop()!r}; known are {', '.join(TASKS)}")
    return SOURCES[source]
