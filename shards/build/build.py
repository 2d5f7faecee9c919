"""Build shard sets from a raw data set: a pure function of the data, in parallel, resumable."""

import re
import shutil
from collections.abc import Callable
from functools import partial
from heapq import nlargest
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from shards.build.output import LOCK, claim, claim_url, clear, clear_url, locked, staging
from shards.build.plan import Plan, plan_splits, versions
from shards.build.space import check_space
from shards.build.upload import send_shard
from shards.build.writer import write_shard
from shards.doctor import (
    FINDINGS,
    Finding,
    load_findings,
    report_findings,
    save_findings,
    totals,
)
from shards.errors import DataError, UsageError
from shards.files import disk_errors, is_url
from shards.format.index import SAMPLES, offsets_path, save_rows
from shards.format.manifest import MANIFEST, File, Manifest
from shards.format.schema import TASKS
from shards.parallel import Runner, cpus, processes, run
from shards.remote import RemoteFolder
from shards.sources import ade20k, cityscapes, coco, folder, vistas
from shards.sources.coco_item import CocoFiles

SOURCES = {
    "coco": coco,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "vistas": vistas,
    "folder": folder,
}


def build(
    source: str,
    root: Path | CocoFiles,
    out: Path | str,
    *,
    splits: list[str] | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    tasks: list[str] | None = None,
    shards: int | None = None,
    drop_empty: bool = False,
    strict: bool = False,
    runner: Runner | None = None,
    work: Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Make `out/<split>/` a shard set of every split of the raw data set under `root`.

    For `coco`, `root` may also be the files of one split, which `splits` then names. `out` is a
    folder, or a URL that fsspec can write below: shards are then made in a folder in `work`
    (default: WORK) and sent one by one, the manifest last.

    `limit` keeps the first images by key, `jobs` is the number of processes (default: the CPUs),
    `tasks` restricts the truth (default: all there is), `shards` fixes their number (default: the
    least power of two with at most 128 MiB of raw files each), `drop_empty` leaves out images
    without truth, `strict` stops at the first image that the doctor rejects, `runner` has shards
    made elsewhere than in `jobs` processes here. Apart from these last two, the bytes are a
    function of the arguments, the raw files and the library versions. Run again after an
    interruption it goes on, and run again after a change of data or settings it makes the shards
    anew that the change concerns.

    Returns, for every split, its samples, shards, bytes, tasks, members, fingerprint and number of
    findings by code. Raises UsageError for wrong arguments or folders, DataError for raw data that
    cannot be built, Failed where the disk has too little room, a server refuses or processes die.
    """
    module = _check(source, root, splits, limit, jobs, tasks, shards)
    url = str(out).rstrip("/") if is_url(out) else None
    out = staging(source, url, work) if url else Path(out)
    with disk_errors(out):
        names = splits or module.splits(root, report)
        claim(out, source)
        if url:
            claim_url(url, source)
        raw = [module.read(root, name, tasks or None, report) for name in names]
        plans = plan_splits(
            raw, out, limit=limit, shards=shards, drop_empty=drop_empty, strict=strict
        )
        pieces = [job for plan in plans for job in plan.jobs]
        if not url:
            check_space(out, pieces)
        elif not runner:  # a shard of each process at a time
            check_space(out, nlargest(jobs or cpus(), pieces, key=attrgetter("room")))
        if len({plan.split.taxonomy for plan in plans}) > 1:
            report("the splits have different categories; build with --tasks to make them agree")
        summaries = {}
        for plan in plans:
            name = plan.split.name
            target = RemoteFolder(f"{url}/{name}") if url else None
            summaries[name] = _build_split(plan, target, runner or processes(jobs), report)
        return summaries


def _build_split(
    plan: Plan, target: RemoteFolder | None, runner: Runner, report: Callable[[str], None]
) -> dict[str, Any]:
    name, folder = plan.split.name, plan.folder
    place = target.url if target else folder
    with locked(folder):
        manifest = _finished(plan, target)
        if manifest:
            report(f"{name}: {place} holds this build already, nothing to do")
            findings = load_findings(folder)
            if target:
                shutil.rmtree(folder)
            return _summary(manifest, findings)
        if (folder / MANIFEST).exists():
            report(f"{name}: {place} holds an older build, bringing it up to date")
        keep = {job.tar.stem for job in plan.jobs}
        if target:
            target.remove(MANIFEST)
            target.send(folder / LOCK, LOCK)  # from now on what is there is ours
            clear_url(target, keep)
        (folder / MANIFEST).unlink(missing_ok=True)
        clear(folder, keep)
        work = partial(send_shard, remote=target) if target else write_shard
        made = run(work, plan.jobs, runner, name, [len(job.items) for job in plan.jobs])
        findings = plan.findings + [finding for one in made for finding in one.findings]
        save_findings(folder, findings)
        report_findings(name, place, findings, report)
        save_rows(folder, [one.rows for one in made])
        manifest = Manifest(
            source=plan.split.source,
            taxonomy=plan.split.taxonomy,
            tasks=plan.split.tasks,
            members=(plan.ext, "json", *plan.split.truths),
            licence=plan.split.licenses,
            versions=versions(),
            inputs=plan.inputs,
            index=File.of(folder / SAMPLES),
            shards=tuple(one.shard for one in made),
        )
        if not manifest.samples:
            raise DataError(f"{name}: no image is left; {folder / FINDINGS} says why")
        manifest.save(folder)
        if target:
            for last in (FINDINGS, SAMPLES, MANIFEST):
                target.send(folder / last, last)
            shutil.rmtree(folder)
    size_mib = sum(shard.bytes for shard in manifest.shards) / 2**20
    report(
        f"{place}: {manifest.samples} images in {len(manifest.shards)} shards, "
        f"{size_mib:.1f} MiB; serves {', '.join(manifest.tasks)}"
    )
    return _summary(manifest, findings)


def _finished(plan: Plan, target: RemoteFolder | None) -> Manifest | None:
    """The manifest, if the finished build of this plan is there; with a `target` it, and what was
    found, are brought into the folder."""
    folder = plan.folder
    if target:
        target.fetch(MANIFEST, folder / MANIFEST)
        target.fetch(FINDINGS, folder / FINDINGS)
    try:
        manifest = Manifest.load(folder)
    except ValueError:
        return None
    if target:
        info, sizes = target.info(MANIFEST), target.files()
        written = info.changed if info else 0
    else:
        written = (folder / MANIFEST).stat().st_mtime_ns
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    same = manifest.inputs == plan.inputs and written > plan.changed
    whole = all(sizes.get(shard.name) == shard.bytes for shard in manifest.shards)
    indices = (offsets_path(folder / shard.name).name for shard in manifest.shards)
    there = all(name in sizes for name in (SAMPLES, FINDINGS, *indices))
    return manifest if same and whole and there else None


def _summary(manifest: Manifest, findings: list[Finding]) -> dict[str, Any]:
    return {
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "tasks": list(manifest.tasks),
        "members": list(manifest.members),
        "fingerprint": manifest.fingerprint,
        "findings": totals(findings),
    }


def _check(
    source: str,
    root: Path | CocoFiles,
    splits: list[str] | None,
    limit: int | None,
    jobs: int | None,
    tasks: list[str] | None,
    shards: int | None,
) -> ModuleType:
    """The source module. Raises UsageError naming the wrong argument."""
    if source not in SOURCES:
        raise UsageError(f"unknown source {source!r}; known are {', '.join(SOURCES)}")
    if isinstance(root, CocoFiles):
        _check_files(root, source, splits)
    elif not root.is_dir():
        raise UsageError(f"--root {root} is not a folder; give the folder of the raw data set")
    for name, value in {"limit": limit, "jobs": jobs, "shards": shards}.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is too small; give 1 or more")
    if wrong := set(tasks or ()) - set(TASKS):
        raise UsageError(f"unknown task {wrong.pop()!r}; known are {', '.join(TASKS)}")
    return SOURCES[source]


def _check_files(files: CocoFiles, source: str, splits: list[str] | None) -> None:
    """Raises UsageError naming the file that is not there or not given."""
    if source != "coco":
        raise UsageError(f"--instances and --panoptic are for coco; {source} is read from --root")
    if not (files.instances or files.panoptic):
        raise UsageError("--images needs its annotations; give --instances or --panoptic")
    if bool(files.panoptic) != bool(files.maps):
        raise UsageError("--panoptic needs --maps, the folder of its PNGs, and --maps needs it")
    for name in ("instances", "panoptic"):
        if (path := getattr(files, name)) and not path.is_file():
            raise UsageError(f"--{name} {path} is not a file; give a JSON in COCO's format")
    for name in ("images", "maps"):
        if (path := getattr(files, name)) and not path.is_dir():
            raise UsageError(f"--{name} {path} is not a folder; give that of the file names")
    if not (splits and len(splits) == 1 and re.fullmatch(r"\w[\w.-]*", splits[0])):
        raise UsageError(f"--split {splits and ','.join(splits)} is no name for a folder; give one")
