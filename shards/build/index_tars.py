"""Make third-party tars a shard set in place: examine them, and write an index and a manifest."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shards.build.examine_tar import ExaminedTar, TarToExamine, examine
from shards.build.plan import versions
from shards.build.tar_members import find_members
from shards.doctor import FINDINGS, Finding, report_findings, save_findings
from shards.errors import DataError, UsageError, some_of
from shards.files import disk_errors, is_clutter
from shards.format.index import SAMPLES, Row, save_rows
from shards.format.manifest import MANIFEST, File, Manifest, digest, is_shard_name
from shards.format.schema import TASKS
from shards.format.third_party import SOURCE
from shards.parallel import Runner, processes, run
from shards.sources.classes import load_classes
from shards.text import say


def index_tars(
    folder: Path,
    classes: Path,
    *,
    out: Path | None = None,
    image: str | None = None,
    labels: str | None = None,
    instances: str | None = None,
    runner: Runner | None = None,
    report: Callable[[str], None] = say,
) -> Manifest:
    """Make the `*.tar` in `folder` a shard set: write its index, its findings, and a manifest.

    The index leaves out the samples that the doctor rejects.

    Args:
        folder: The folder of the tars.
        classes: The path of a `classes.yaml`.
        out: The folder of the set, in which links to the tars are made. Default: `folder`.
        image: The extension of the images. Default: the only image of a sample that is not a PNG.
        labels: The extension of the label maps. Default: the only PNG of a sample.
        instances: The extension of the instance-id maps (optional).
        runner: Examines the tars. Default: a process per CPU.
        report: Receives a line for everything that the user should know.

    Returns:
        The manifest.

    Raises:
        UsageError: The folder has no tars, the folder of the set cannot be written or holds a set
            that `build` made, or a member is missing or ambiguous.
        DataError: The classes or the tars cannot be used.
        Failed: The disk is full.
    """
    out = out or folder
    with disk_errors(out):
        tars = _find_tars(folder, report)
        _claim(out)
        taxonomy, ignored, licenses = load_classes(classes)
        members = find_members(tars, image, labels, instances, tuple(ignored))
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
        return _index(out, pieces, runner or processes(), report)


def _find_tars(folder: Path, report: Callable[[str], None]) -> list[Path]:
    """Return the tars of a folder that are not empty and not hidden.

    Raises:
        UsageError: There are none, or a name cannot be listed in a manifest.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in paths if path.suffix.lower() == ".tar" and not path.is_dir()]
    skipped = [
        path.name for path in paths if is_clutter(Path(path.name)) or not path.stat().st_size
    ]
    if skipped:
        report(f"{folder}: skipped {some_of(skipped)}, hidden or empty")
    tars = [path for path in paths if path.name not in skipped]
    for path in tars:
        if not is_shard_name(path.name):
            raise UsageError(
                f"the name {path.name!r} has a backslash, control characters, or is not UTF-8",
                where=folder,
                fix="rename the file",
            )
    if not tars:
        raise UsageError("the folder has no *.tar", where=folder, fix="give the folder of the tars")
    return tars


def _claim(out: Path) -> None:
    """Create the folder of the set if necessary, and make sure that it can be written.

    Raises:
        UsageError: It cannot be written, or holds a set that `build` made or another manifest.json.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"the folder cannot be written ({error.strerror})",
            where=out,
            fix="give another folder with --out",
        ) from error
    if not (out / MANIFEST).exists():
        return
    try:
        found = Manifest.load(out)
    except DataError as error:
        raise UsageError(
            f"the folder holds a {MANIFEST} that is not that of a shard set, or is damaged",
            where=out,
            fix="give another folder with --out, or remove the file",
        ) from error
    if found.foreign is None:
        raise UsageError(
            "the folder is a shard set that build made", where=out, fix="use it without index"
        )


def _index(
    out: Path, pieces: list[TarToExamine], runner: Runner, report: Callable[[str], None]
) -> Manifest:
    """Examine the tars and write the files of the set, the manifest last."""
    (out / MANIFEST).unlink(missing_ok=True)
    folder = pieces[0].tar.parent
    examined = run(examine, pieces, runner, f"{folder.name}/*.tar", [1] * len(pieces))
    for tar in examined:
        if tar.skipped:
            report(f"{tar.shard.name}: no sample holds {some_of(tar.skipped, 5)}")
    examined = [tar for tar in examined if tar.rows or tar.findings]
    _distinguish_keys(examined, report)
    rows, repeated = _without_repeated_keys(examined)
    findings = [finding for tar in examined for finding in tar.findings] + repeated
    save_findings(out, findings)
    report_findings(out.name, out, findings, report)
    save_rows(out, rows)
    shards = tuple(
        replace(tar.shard, samples=len(of_tar)) for tar, of_tar in zip(examined, rows, strict=True)
    )
    manifest = replace(
        pieces[0].manifest,
        inputs=digest([shard.sha256 for shard in shards]),
        index=File.of(out / SAMPLES),
        shards=shards,
    )
    if not manifest.samples:
        raise DataError(
            "no sample is intact", where=out, fix=f"see {out / FINDINGS} for the reasons"
        )
    if not out.samefile(folder):
        _link(out, [folder / shard.name for shard in shards])
    manifest.save(out)
    report(
        f"{out}: {manifest.samples} samples in {len(shards)} tars are readable in place "
        f"for the tasks {', '.join(manifest.tasks)}"
    )
    return manifest


def _link(out: Path, tars: Sequence[Path]) -> None:
    """Make links to the tars in the folder of the set.

    Raises:
        UsageError: The folder holds another file of that name.
    """
    for tar in tars:
        link = out / tar.name
        if link.is_symlink():
            link.unlink()
        if link.exists():
            raise UsageError(
                "the file is in the way of a link to the tar", where=link, fix="give another --out"
            )
        link.symlink_to(tar.absolute())


def _distinguish_keys(examined: list[ExaminedTar], report: Callable[[str], None]) -> None:
    """Put the name of the tar before each key that occurs in several tars."""
    tars_of: defaultdict[str, set[str]] = defaultdict(set)
    for tar in examined:
        for row in tar.rows:
            tars_of[row["key"]].add(tar.shard.name)
    renamed = 0
    for tar in examined:
        for row in tar.rows:
            if len(tars_of[row["key"]]) > 1:
                row["key"] = f"{Path(tar.shard.name).stem}/{row['key']}"
                renamed += 1
    if renamed:
        report(f"{renamed} samples have keys of several tars; they are named TAR/KEY")


def _without_repeated_keys(
    examined: list[ExaminedTar],
) -> tuple[list[list[Row]], list[Finding]]:
    """Return the rows of each tar whose keys occur once, and a finding for each other row."""
    counts = Counter(row["key"] for tar in examined for row in tar.rows)
    repeated = [
        Finding(f"{tar.shard.name}/{row['key']}", 17, f"{counts[row['key']]} samples have this key")
        for tar in examined
        for row in tar.rows
        if counts[row["key"]] > 1
    ]
    return [[row for row in tar.rows if counts[row["key"]] == 1] for tar in examined], repeated
