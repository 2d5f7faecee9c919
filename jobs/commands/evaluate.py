"""The command `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.commands.options import Checkpoint, DryRun, Json, On, Run, Site, opened_run
from jobs.console import report
from shards.errors import UsageError

CONFIG = "config.yaml"  # of a run
AS_THEY_ARE = "two evaluations are compared as they are"
OF_WEIGHTS = "it belongs to weights without a run"


Other = Annotated[
    str | None,
    typer.Argument(
        help="Compare the latest evaluations of RUN and of this run, or of two records "
        "(evaluations/*.npz); nothing is computed again."
    ),
]
Data = Annotated[Path | None, typer.Option(help="Another shard set with the same classes.")]
Images = Annotated[int | None, typer.Option(min=1, help="Number of first images.")]
Report = Annotated[
    Path | None,
    typer.Option("--report", help="HTML page to write: scores, reasons, and worst images."),
]
ForServers = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write in the formats of servers: COCO's, Cityscapes', or ADE20K's."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Of weights without a run: the preset with the settings of the network."),
]
Out = Annotated[
    Path | None, typer.Option(help="Of weights without a run: the folder for the scores.")
]


def evaluate(
    run: Run,
    other: Other = None,
    checkpoint: Checkpoint = None,
    data: Data = None,
    images: Images = None,
    report_to: Report = None,
    results: ForServers = None,
    preset: Preset = None,
    out: Out = None,
    on: On = "local",
    site: Site = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score a run on its val set: PQ, AP, and mIoU from one pass; or compare two evaluations.

    RUN may also be weights without a run: a folder of transformers, or an official .pkl.

    \b
    Example:
      ./launch.sh evaluate model_final_94dc52.pkl --preset coco_panoptic_r50 --data SHARDS/val \\
        --out scores
    """
    given = {"--checkpoint": checkpoint, "--on": None if on == "local" else on}
    given |= {"--dry-run": dry_run or None}
    if other:
        given |= {"--data": data, "--images": images, "--preset": preset, "--out": out}
        given |= {"--report": report_to, "--results": results}
        _refuse(given, AS_THEY_ARE, "evaluate each run with it first")
        from jobs.compare import compare

        report(lambda: compare(run, other), as_json)
        return
    if _is_weights(run):
        _refuse(given, "it needs a run, not weights", "leave it out")
        from jobs.evaluate_weights import evaluate_weights

        report(
            lambda: evaluate_weights(Path(run), data, out, preset, images, report_to, results),
            as_json,
        )
        return
    _refuse({"--preset": preset, "--out": out}, OF_WEIGHTS, "a run has its own settings and folder")
    _evaluate_run(run, checkpoint, data, images, report_to, results, (on, site, dry_run), as_json)


def _evaluate_run(
    run: str,
    checkpoint: str | None,
    data: Path | None,
    images: int | None,
    report_to: Path | None,
    results: Path | None,
    where: tuple[str, Path | None, bool],
    as_json: bool,
) -> None:
    """Score a run here, or submit it; `where` has the values of --on, --site, and --dry-run."""
    from jobs.cluster import dispatch

    target, facts = dispatch.resolve(*where)
    if target.is_submitted:
        given = {"--data": data, "--report": report_to, "--results": results}
        locations = {option: path for option, path in given.items() if path}
        dispatch.submit(dispatch.run_job(run, locations, target, facts), target, where[2])
        return

    def job() -> dict[str, Any]:
        with opened_run(run, checkpoint) as folder:
            from jobs.evaluate import evaluate as score

            return score(folder, checkpoint, data, images, target, run, report_to, results)

    report(job, as_json)


def _is_weights(run: str) -> bool:
    """Return whether a path holds weights instead of a run."""
    path = Path(run)
    return path.is_file() or ((path / "config.json").is_file() and not (path / CONFIG).exists())


def _refuse(given: Mapping[str, Any], what: str, fix: str) -> None:
    """Raise UsageError for the first option that has a value."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(what, where=option, fix=fix)
