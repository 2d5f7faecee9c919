"""Commands that make, check, and describe shard sets."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.commands.options import Json, Processes
from jobs.console import report


def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Layout of the raw data: coco, ade20k, cityscapes, vistas (Mapillary, 1.2), "
            "or folder (your own images and label maps, see docs/folder.md)."
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Folder or URL (s3://, …) for the shard sets, one per split.")
    ],
    root: Annotated[Path | None, typer.Option(help="Folder of the raw data.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="coco with your own files instead of --root: folder of the images."),
    ] = None,
    instances: Annotated[
        Path | None, typer.Option(help="coco with your own files: the instances JSON.")
    ] = None,
    panoptic: Annotated[
        Path | None, typer.Option(help="coco with your own files: the panoptic JSON.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option(help="coco with your own files: folder of the panoptic PNGs.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="coco with your own files: name of the split, such as train.")
    ] = None,
    splits: Annotated[
        str | None, typer.Option(help="Splits, separated by commas. Default: all that exist.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first images of each split.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per CPU.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks, separated by commas. Default: all that the data has truth for."),
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Number of shards per split.")] = None,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Leave out images without truth.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first image that the doctor rejects.")
    ] = False,
    on: Annotated[
        str,
        typer.Option(
            help="Where shards are made. local: on this machine. HOST:PORT or ray://HOST:PORT: "
            "on a Ray cluster whose nodes share this checkout, the raw data, and --out (unless it "
            "is a URL). auto: on the cluster of RAY_ADDRESS if that is set, otherwise local."
        ),
    ] = "auto",
    work: Annotated[
        Path | None,
        typer.Option(
            help="Staging folder for uploads if --out is a URL; it needs space for one shard per "
            "process. Default: ~/.cache/mask2former/build."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a raw data set into shards, and print which tasks they serve.

    An interrupted build resumes if you run the same command again.
    """
    from jobs.build import build as job
    from jobs.build import raw_data
    from shards.build.options import BuildOptions

    def run() -> dict[str, Any]:
        files = {"images": images, "instances": instances, "panoptic": panoptic, "maps": maps}
        data, names = raw_data(root, splits, files, split)
        options = BuildOptions(
            *(source, data, out, names),
            limit=limit,
            jobs=jobs,
            tasks=tuple(tasks.split(",")) if tasks else (),
            shards=shards,
            drop_empty=drop_empty,
            strict=strict,
            work=work,
        )
        return job(options, on)

    report(run, as_json)


def verify(
    out: Annotated[
        str,
        typer.Argument(help="Output folder or URL of a build, or the folder of one split."),
    ],
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Check that many samples per shard. Default: check every byte."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Rebuild missing or damaged index files from the tars."),
    ] = False,
    jobs: Processes = None,
    as_json: Json = False,
) -> None:
    """Check the hashes, the index, and every sample of shard sets; exit 3 if damaged."""
    from jobs.verify import verify as job

    report(lambda: job(out, sample, repair, jobs), as_json)


def inspect(
    sets: Annotated[
        Path, typer.Argument(help="Output folder of a build, or the folder of one split.")
    ],
    key: Annotated[str | None, typer.Argument(help="Draw this sample with its truth.")] = None,
    out: Annotated[Path | None, typer.Option(help="The PNG of KEY. Default: KEY.png.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with charts and pictures of samples.")
    ] = None,
    jobs: Processes = None,
    as_json: Json = False,
) -> None:
    """Print the classes, sizes, areas, and objects of shard sets, or draw one sample."""
    from jobs.inspect.inspect import inspect as job

    report(lambda: job(sets, key, html, out, jobs), as_json)


def index(
    folder: Annotated[Path, typer.Argument(help="Folder of tars that webdataset can read.")],
    classes: Annotated[
        Path | None,
        typer.Option(
            help="YAML of the classes, see docs/folder.md. Default: classes.yaml in the folder."
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Extension of the images. Default: the only one that is not PNG."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Extension of the label maps. Default: the only PNG.")
    ] = None,
    instances: Annotated[
        str | None, typer.Option(help="Extension of the instance-id maps. Default: none.")
    ] = None,
    jobs: Processes = None,
) -> None:
    """Index tars of images and label maps as a shard set in place, without copying."""
    from jobs.index import index as job

    job(folder, classes, image, labels, instances, jobs)
