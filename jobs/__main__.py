"""`./launch.sh <command>`: the commands, their help, and what an error looks like."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from shards.errors import DataError, Failed, UsageError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train Mask2Former from raw data to scored pictures. "
    "Also: setup (make the environment), test [--all] (the suite).",
)

Run = Annotated[str, typer.Argument(help="A name under runs/, or a path.")]
Sets = Annotated[Path, typer.Argument(help="The --out of a build, or the folder of one split.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="best, last or a step. Default: best where a score is known, else last."),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, shards, run and pictures.")] = Path(
        "demo"
    ),
) -> None:
    """The whole main path, small, on this machine: data, shards, training, scores, pictures."""
    from jobs.demo.demo import demo

    demo(out)


@app.command()
def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Layout of the raw data: coco, ade20k, cityscapes, vistas (Mapillary, 1.2), "
            "or folder (images and label maps of your own, see docs/folder.md)."
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Folder, or URL (s3://, …), for the shard sets, one a split.")
    ],
    root: Annotated[Path | None, typer.Option(help="Folder of the raw data.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="coco, your own files instead of --root: folder of the images."),
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="coco, your own files: the JSON of instances.")
    ] = None,
    panoptic: Annotated[
        Path | None, typer.Option(help="coco, your own files: the panoptic JSON.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(help="coco, your own files: folder of the panoptic PNGs.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="coco, your own files: name of the set, such as train.")
    ] = None,
    splits: Annotated[str | None, typer.Option(help="Splits by comma. Default: all found.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First images of each split.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: all CPUs.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks by comma. Default: all served.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Number of shards a split.")] = None,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out images without truth.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first image that the doctor rejects.")
    ] = False,
    on: Annotated[
        str,
        typer.Option(
            help="Where shards are made: local; HOST:PORT or ray://HOST:PORT, a Ray cluster whose "
            "nodes share this checkout, the raw data and --out (or that is a URL); auto: the "
            "cluster of RAY_ADDRESS if that is set, else local."
        ),
    ] = "auto",
    work: Annotated[
        Path | None,
        typer.Option(
            help="With a URL as --out, where shards wait to be sent; for --jobs of them there has "
            "to be room. Default: ~/.cache/mask2former/build."
        ),
    ] = None,
) -> None:
    """Convert a raw data set into shards, if there is room; says which tasks the result serves."""
    from jobs.build import build

    build(
        *(source, root, out, splits, limit, jobs, tasks, shards, drop_empty, strict),
        images=images,
        instances=instances,
        panoptic=panoptic,
        maps=maps,
        split=split,
        work=work,
        on=on,
    )


@app.command()
def verify(
    out: Annotated[
        str, typer.Argument(help="The --out of a build, also a URL, or the folder of one split.")
    ],
    sample: Annotated[
        int | None, typer.Option(min=1, help="Read that many samples a shard. Default: all bytes.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make lost or damaged index files anew from the tars.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: all CPUs.")] = None,
) -> None:
    """Check shard sets: hashes, index, every sample decoded and sent round. Exit 3 if damaged."""
    from jobs.verify import verify

    verify(out, sample, repair, jobs)


@app.command()
def inspect(
    sets: Sets,
    key: Annotated[str | None, typer.Argument(help="Draw this sample with its truth.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to draw it. Default: KEY.png.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with charts and pictures of samples.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: all CPUs.")] = None,
) -> None:
    """Say what shard sets hold: classes, sizes, areas, objects; or draw one sample."""
    from jobs.inspect.inspect import inspect

    inspect(sets, key, html, out, jobs)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of tars that webdataset could read.")],
    classes: Annotated[
        Path | None,
        typer.Option(help="What the labels mean, see docs/folder.md. Default: classes.yaml there."),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Extension of the images. Default: the one not PNG.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Extension of the label maps. Default: the only PNG.")
    ] = None,
    instances: Annotated[
        str | None, typer.Option(help="Extension of the maps of things' numbers, if there are.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes. Default: all CPUs.")] = None,
) -> None:
    """Make tars of images and label maps a shard set where they are: nothing is copied."""
    from jobs.index import index

    index(folder, classes, image, labels, instances, jobs)


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="A preset's name, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")
    ] = None,
) -> None:
    """Train, or go on where the run of that name stopped."""
    from jobs.train import train

    train(preset, overrides or [])


@app.command()
def evaluate(
    run: Run,
    checkpoint: Checkpoint = None,
    data: Annotated[
        Path | None, typer.Option(help="Another shard set of the same classes.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first images.")] = None,
) -> None:
    """Score a run on its val set: PQ, AP and mIoU from one pass."""
    from jobs.evaluate import evaluate

    evaluate(run, checkpoint, data, images)


@app.command()
def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures and JSON.")],
    checkpoint: Checkpoint = None,
) -> None:
    """Segment images: panoptic overlays and COCO-format JSON."""
    from jobs.predict import predict

    predict(run, images, out, checkpoint)


@app.command()
def replay(
    run: Run,
    step: Annotated[int, typer.Option(min=1, help="Optimizer step, as in metrics.jsonl.")],
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank's samples.")] = None,
) -> None:
    """Draw again, as pictures, exactly what the net saw at a step."""
    from jobs.replay import replay

    replay(run, step, rank)


@app.command()
def export(
    run: Run,
    to: Annotated[str, typer.Option(help="transformers or detectron2.")],
    out: Annotated[
        Path | None, typer.Option(help="New folder. Default: RUN/exports/FORMAT-step-N.")
    ] = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Write weights that others load, with a model card."""
    from jobs.export import export

    export(run, to, out, checkpoint)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="A module of jobs/bench/, such as overfit.")],
    json: Annotated[Path | None, typer.Option(help="Also write the rows to this file.")] = None,
) -> None:
    """Measure what we claim, beside a peer where there is one."""
    from jobs.bench import bench

    bench(name, json)


def main() -> int:
    """Run a command. 0 done, 2 bad usage or config, 3 bad data, 1 failed."""
    try:
        app(standalone_mode=False, prog_name="./launch.sh")
    except DataError as error:
        return _complain(str(error), 3)
    except UsageError as error:
        return _complain(str(error), 2)
    except Failed as error:
        return _complain(str(error), 1)
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", 130)
    except typer.TyperException as error:
        error.show()
        return 2
    return 0


def _complain(text: str, code: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
