"""Build shard sets from a raw data set: in parallel, resumable, the same bytes every time."""

from collections.abc import Callable
from heapq import nlargest
from operator import attrgetter
from pathlib import Path
from typing import Any

from shards.build.claim import check_space, claim_folder, claim_url
from shards.build.destination import FolderDestination, UrlDestination, staging_folder
from shards.build.hold_out import held_out
from shards.build.options import BuildOptions
from shards.build.plan import SplitPlan, plan_splits, versions
from shards.build.writer import BuiltShard
from shards.doctor import (
    FINDINGS,
    Finding,
    load_findings,
    report_findings,
    save_findings,
    totals,
)
from shards.errors import DataError
from shards.files import disk_errors
from shards.format.index import SAMPLES, offsets_path, save_rows
from shards.format.manifest import MANIFEST, File, Manifest
from shards.parallel import Runner, cpus, processes, run
from shards.remote import RemoteFolder
from shards.sources.coco_item import CocoFiles
from shards.text import say

Report = Callable[[str], None]


def build(
    source: str,
    root: Path | CocoFiles,
    out: Path | str,
    *,
    runner: Runner | None = None,
    report: Report = say,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Call `build_sets` with the fields of BuildOptions as keywords."""
    return build_sets(BuildOptions(source, root, out, **options), runner, report)


def build_sets(
    options: BuildOptions, runner: Runner | None = None, report: Report = say
) -> dict[str, dict[str, Any]]:
    """Build a shard set in `out/<split>/` for every chosen split of a raw data set.

    After an interruption, the same call resumes. After a change of data or options, it rebuilds
    only the shards that the change concerns.

    Args:
        options: What to build, and from which data.
        runner: What builds the shards. Default: `options.jobs` processes on this machine.
        report: Receives a line for everything that the user should know.

    Returns:
        For every split: its samples, shards, bytes, tasks, members, fingerprint, and number of
        findings by code.

    Raises:
        UsageError: The folder or URL of the output, or a raw file, cannot be used.
        DataError: The raw data cannot be built.
        Failed: The disk has too little room, a server does not answer, or processes die.
    """
    url = options.url
    out = staging_folder(options.source, url, options.work) if url else Path(options.out)
    with disk_errors(out):
        plans = _plan(options, out, report)
        _check_room(plans, out, options, runner)
        first = plans[0].split
        for split in (plan.split for plan in plans[1:]):
            if difference := first.taxonomy.difference(split.taxonomy):
                report(
                    f"the splits {first.name} and {split.name} have different categories: "
                    f"{difference}; build with --tasks to make them agree"
                )
        summaries = {}
        for plan in plans:
            name = plan.split.name
            destination = (
                UrlDestination(plan.folder, RemoteFolder(f"{url}/{name}"))
                if url
                else FolderDestination(plan.folder)
            )
            with destination.locked():
                summaries[name] = _build_split(
                    plan, destination, runner or processes(options.jobs), report
                )
        return summaries


def _plan(options: BuildOptions, out: Path, report: Report) -> list[SplitPlan]:
    """Check that `out` and the URL are usable, read the splits, and plan their shards."""
    module = options.module
    names = options.splits or module.splits(options.root, report)
    claim_folder(out, options.source)
    if options.url:
        claim_url(options.url, options.source)
    splits = [module.read(options.root, name, options.tasks or None, report) for name in names]
    if options.hold_out:
        splits = held_out(splits, options.hold_out, report)
    return plan_splits(splits, out, options)


def _check_room(
    plans: list[SplitPlan], out: Path, options: BuildOptions, runner: Runner | None
) -> None:
    """Raise Failed if the disk of `out` has no room for the shards that it must hold at once."""
    shards = [shard for plan in plans for shard in plan.shards]
    if options.url:  # every process holds one shard at a time, here or on another machine
        shards = nlargest(options.jobs or cpus(), shards, key=attrgetter("room"))
    if not (options.url and runner):
        check_space(out, sum(shard.room for shard in shards if not shard.tar.exists()))


def _build_split(
    plan: SplitPlan, destination: FolderDestination, runner: Runner, report: Report
) -> dict[str, Any]:
    """Build the shards of a split, then its index and its manifest, unless the set is finished."""
    name, folder, location = plan.split.name, plan.folder, destination.location
    destination.load_records()
    manifest = _finished(plan, destination)
    if manifest:
        report(f"{name}: {location} holds this build already, nothing to do")
        findings = load_findings(folder)
    else:
        if (folder / MANIFEST).exists():
            report(f"{name}: {location} holds an older build, bringing it up to date")
        destination.prepare({shard.tar.stem for shard in plan.shards})
        sizes = [len(shard.items) for shard in plan.shards]
        built = run(destination.builder, plan.shards, runner, name, sizes)
        findings = plan.findings + [finding for shard in built for finding in shard.findings]
        save_findings(folder, findings)
        report_findings(name, location, findings, report)
        manifest = _save_manifest(plan, built)
        destination.publish()
        size_mib = sum(shard.bytes for shard in manifest.shards) / 2**20
        report(
            f"{location}: {manifest.samples} images in {len(manifest.shards)} shards, "
            f"{size_mib:.1f} MiB; for the tasks {', '.join(manifest.tasks)}"
        )
    destination.clean_up()
    return _summary(manifest, findings)


def _save_manifest(plan: SplitPlan, built: list[BuiltShard]) -> Manifest:
    """Write the index and, last, the manifest."""
    save_rows(plan.folder, [shard.rows for shard in built])
    manifest = Manifest(
        source=plan.split.source,
        taxonomy=plan.split.taxonomy,
        tasks=plan.split.tasks,
        members=(plan.ext, "json", *plan.split.truths),
        licence=plan.split.licenses,
        versions=versions(),
        inputs=plan.inputs,
        index=File.of(plan.folder / SAMPLES),
        shards=tuple(shard.shard for shard in built),
    )
    if not manifest.samples:
        raise DataError(
            "no image is left",
            where=f"split {plan.split.name}",
            fix=f"see {plan.folder / FINDINGS} for the reasons",
        )
    manifest.save(plan.folder)
    return manifest


def _finished(plan: SplitPlan, destination: FolderDestination) -> Manifest | None:
    """Return the manifest if the finished build of this plan is at the destination."""
    try:
        manifest = Manifest.load(plan.folder)
    except ValueError:
        return None
    if manifest.inputs != plan.inputs or destination.manifest_time() <= plan.changed:
        return None
    sizes = destination.sizes()
    indices = (offsets_path(plan.folder / shard.name).name for shard in manifest.shards)
    complete = all(sizes.get(shard.name) == shard.bytes for shard in manifest.shards)
    if complete and all(name in sizes for name in (SAMPLES, FINDINGS, *indices)):
        return manifest
    return None


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
