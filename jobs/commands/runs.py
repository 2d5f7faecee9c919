"""Commands that train, score, and use networks."""

import contextlib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from jobs.commands.options import Checkpoint, DryRun, Json, On, Run, Site
from jobs.console import report
from shards.errors import UsageError

CONFIG = "config.yaml"  # of a run
AS_THEY_ARE = "two evaluations are compared as they are"
OF_WEIGHTS = "it belongs to weights without a run"
PRESET = (
    "A preset of docs/presets.md, such as coco_panoptic_r50 or tiny, or the path of a YAML file"
)


class Task(StrEnum):
    """What a network is used for."""

    PANOPTIC = "panoptic"
    INSTANCE = "instance"
    SEMANTIC = "semantic"


@contextlib.contextmanager
def _opened(
    run: str, checkpoint: str | None = None, *, needs_weights: bool = True
) -> Iterator[str]:
    """Yield the folder of a run; see `jobs.stored.opened`.

    A run that does not exist is reported before torch is imported, which takes seconds.
    """
    from jobs import config

    config.check_run(run)
    from jobs.stored import opened

    with opened(run, checkpoint, needs_weights=needs_weights) as folder:
        yield str(folder)


def _is_weights(run: str) -> bool:
    """Return whether a path holds weights instead of a run."""
    path = Path(run)
    return path.is_file() or ((path / "config.json").is_file() and not (path / CONFIG).exists())


def _refuse(given: Mapping[str, Any], what: str, fix: str) -> None:
    """Raise UsageError for the first option that has a value."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(what, where=option, fix=fix)


def train(
    preset: Annotated[str, typer.Argument(help=PRESET)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as batch.size=8."),
    ] = None,
    on: On = "local",
    site: Site = None,
    dry_run: DryRun = False,
    check_hosts: Annotated[
        bool,
        typer.Option(
            "--check/--no-check", help="Check the hosts of a Ray cluster first; see check --help."
        ),
    ] = True,
    allow_faults: Annotated[
        Path | None,
        typer.Option(help="YAML of faults to inject on purpose; see docs/recovery.md."),
    ] = None,
) -> None:
    """Train a preset, or resume a run of the same name where it stopped.

    data.train and data.val are required; `name` is the run's folder in `runs`, which is a folder
    or a URL such as s3://BUCKET/runs. All settings and their defaults: ./launch.sh settings

    \b
    Example:
      ./launch.sh train tiny name=mine data.train=SHARDS/train data.val=SHARDS/val \\
        trainer.steps=2000 optimizer.lr=1e-3
    """
    from jobs import config
    from jobs.cluster import dispatch
    from jobs.inputs import check_exist
    from jobs.ray_session import prepared

    target, facts = dispatch.resolve(on, site, dry_run)
    changes = dispatch.with_runs(preset, overrides or [], facts)
    if target.is_submitted:
        if allow_faults:
            fix = "train here, or with --on HOST:PORT, or leave it out"
            raise UsageError(f"--on {target} has no faults", where="--allow-faults", fix=fix)
        job = dispatch.train_job(preset, changes, target, facts)
        job.command.extend([] if check_hosts else ["--no-check"])
        dispatch.submit(job, target, dry_run)
        return
    gpus = 1 if target.cluster else None  # the number is not known yet
    check_exist(config.load(preset, changes, gpus))  # before seconds of imports
    faults = None
    if allow_faults:
        from jobs.faults import Faults

        faults = Faults.of(allow_faults)
    began = psutil.Process().create_time()
    with prepared():
        from jobs.train import train as run

        run(preset, changes, target=target, check_hosts=check_hosts, faults=faults, began=began)


def evaluate(
    run: Run,
    other: Annotated[
        str | None,
        typer.Argument(
            help="Compare the latest evaluations of RUN and of this run, or of two records "
            "(evaluations/*.npz); nothing is computed again."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    data: Annotated[
        Path | None, typer.Option(help="Another shard set with the same classes.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Number of first images.")] = None,
    report_to: Annotated[
        Path | None,
        typer.Option("--report", help="HTML page to write: scores, reasons, and worst images."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Of weights without a run: the preset with the settings of the network."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of weights without a run: the folder for the scores.")
    ] = None,
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
    given |= {"--dry-run": dry_run or None, "--report": report_to}
    if other:
        given |= {"--data": data, "--images": images, "--preset": preset, "--out": out}
        _refuse(given, AS_THEY_ARE, "evaluate each run with it first")
        from jobs.compare import compare

        report(lambda: compare(run, other), as_json)
        return
    if _is_weights(run):
        _refuse(given, "it needs a run, not weights", "leave it out")
        from jobs.evaluate_weights import evaluate_weights

        report(lambda: evaluate_weights(Path(run), data, out, preset, images), as_json)
        return
    _refuse({"--preset": preset, "--out": out}, OF_WEIGHTS, "a run has its own settings and folder")
    _evaluate_run(run, checkpoint, data, images, report_to, (on, site, dry_run), as_json)


def _evaluate_run(
    run: str,
    checkpoint: str | None,
    data: Path | None,
    images: int | None,
    report_to: Path | None,
    where: tuple[str, Path | None, bool],
    as_json: bool,
) -> None:
    """Score a run here, or submit it; `where` has the values of --on, --site, and --dry-run."""
    from jobs.cluster import dispatch

    target, facts = dispatch.resolve(*where)
    if target.is_submitted:
        given = {"--data": data, "--report": report_to}
        locations = {option: path for option, path in given.items() if path}
        dispatch.submit(dispatch.run_job(run, locations, target, facts), target, where[2])
        return

    def job() -> dict[str, Any]:
        with _opened(run, checkpoint) as folder:
            from jobs.evaluate import evaluate as score

            return score(folder, checkpoint, data, images, target, run, report_to)

    report(job, as_json)


def predict(
    run: Run,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of images, patterns such as 'a/**/*.jpg', shard sets."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results: new, empty, or of a predict.")],
    checkpoint: Checkpoint = None,
    task: Annotated[
        list[Task] | None,
        typer.Option(
            help="Files to write, of one or more tasks. Default: panoptic and instance, or the "
            "run's task if it is another."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Least score of segments and instances. Default: "
            "evaluation.segment.object_threshold for segments, and every instance.",
        ),
    ] = None,
    on: On = "local",
    site: Site = None,
    dry_run: DryRun = False,
) -> None:
    """Segment images: pictures, JSON in COCO's formats, label maps, and a gallery.

    Folders are searched with those below them. An image that cannot be used is left out and
    listed, the rest is done, and the exit code is 3. The same command again does what is missing.

    \b
    Example:
      ./launch.sh predict mine photos 'more/**/*.jpg' --out predictions
    """
    from jobs.cluster import dispatch

    target, facts = dispatch.resolve(on, site, dry_run)
    if target.is_submitted:
        locations = {"IMAGES": images, "--out": out}
        dispatch.submit(dispatch.run_job(run, locations, target, facts), target, dry_run)
        return
    with _opened(run, checkpoint) as folder:
        from jobs.predict.predict import predict as job

        tasks = tuple(dict.fromkeys(one.value for one in task or ()))
        job(folder, images, out, checkpoint, threshold, target, run, tasks)


def replay(
    run: Run,
    step: Annotated[int, typer.Option(min=1, help="Optimizer step, as in metrics.jsonl.")],
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank's samples.")] = None,
) -> None:
    """Draw the exact inputs and targets of the network at a step."""
    with _opened(run, needs_weights=False) as folder:
        from jobs.replay import replay as job

        job(folder, step, rank)


def export(
    run: Run,
    to: Annotated[str, typer.Option(help="transformers, hub, detectron2, onnx, or torch-export.")],
    out: Annotated[
        Path | None, typer.Option(help="New folder. Default: RUN/exports/FORMAT-step-N.")
    ] = None,
    checkpoint: Checkpoint = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of onnx and torch-export: panoptic, instance, or semantic. Default: the run's."
        ),
    ] = None,
) -> None:
    """Write a checkpoint in the format of another library or runtime, with a model card."""
    with _opened(run, checkpoint) as folder:
        from jobs.export.export import export as job

        job(folder, to, out, checkpoint, task)
