"""Commands that train and use networks."""

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import psutil
import typer

from jobs.commands.options import Checkpoint, DryPlan, DryRun, On, Run, Site, opened_run
from shards.errors import UsageError

PRESET = (
    "A preset of docs/presets.md, such as coco_panoptic_r50 or tiny, or the path of a YAML file"
)


Threshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Least score of segments and instances. Default: "
        "evaluation.segment.object_threshold for segments, and every instance.",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(help="Segment images with a longer side in tiles of this many pixels."),
]
TileOverlap = Annotated[
    int | None,
    typer.Option(help="Least overlap of tiles, in pixels. Default: an eighth of --tile."),
]
Polygons = Annotated[
    bool, typer.Option("--polygons", help="Also write polygons.json, for labelling tools.")
]


class Task(StrEnum):
    """What a network is used for."""

    PANOPTIC = "panoptic"
    INSTANCE = "instance"
    SEMANTIC = "semantic"


def train(
    preset: Annotated[str, typer.Argument(help=PRESET)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as batch.size=8."),
    ] = None,
    on: On = "local",
    site: Site = None,
    dry_run: DryPlan = False,
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

    target, facts = dispatch.resolve(on, site, dry_run=False)
    changes = dispatch.with_runs(preset, overrides or [], facts)
    if dry_run and not target.is_submitted:
        import_module("jobs.plan").dry_run(preset, changes)  # imports torch
        return
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


def predict(
    run: Run,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders of images, patterns such as 'a/**/*.jpg', shard sets, URLs."
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
    threshold: Threshold = None,
    tile: Tile = None,
    tile_overlap: TileOverlap = None,
    polygons: Polygons = False,
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
    from jobs.tiled.grid import Tiling

    tiling = Tiling.of(tile, tile_overlap)
    target, facts = dispatch.resolve(on, site, dry_run)
    if target.is_submitted:
        locations = {"IMAGES": images, "--out": out}
        dispatch.submit(dispatch.run_job(run, locations, target, facts), target, dry_run)
        return
    with opened_run(run, checkpoint) as folder:
        from jobs.predict.predict import Use
        from jobs.predict.predict import predict as job

        tasks = tuple(dict.fromkeys(one.value for one in task or ()))
        job(folder, images, out, Use(checkpoint, threshold, tasks, tiling, polygons), target, run)


def replay(
    run: Run,
    step: Annotated[int, typer.Option(min=1, help="Optimizer step, as in metrics.jsonl.")],
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank's samples.")] = None,
) -> None:
    """Draw the exact inputs and targets of the network at a step."""
    with opened_run(run, needs_weights=False) as folder:
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
    with opened_run(run, checkpoint) as folder:
        from jobs.export.export import export as job

        job(folder, to, out, checkpoint, task)
