"""The command that makes shard sets. Its options are declared above the function."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.commands.options import DryRun, Json, On, Processes, Site
from jobs.console import report

Source = Annotated[
    str,
    typer.Argument(
        help="Layout of the raw data: coco, ade20k, cityscapes, vistas (Mapillary, 1.2), "
        "folder (your own images and label maps, see docs/folder.md), labelme, or yolo (outlines)."
    ),
]
Out = Annotated[
    str, typer.Option(help="Folder or URL (s3://, …) for the shard sets, one per split.")
]
Root = Annotated[Path | None, typer.Option(help="Folder of the raw data.")]
Images = Annotated[
    Path | None,
    typer.Option(help="For coco without --root, from your own files: folder of the images."),
]
Instances = Annotated[
    Path | None,
    typer.Option(help="For coco without --root, from your own files: the instances JSON."),
]
Panoptic = Annotated[
    Path | None,
    typer.Option(help="For coco without --root, from your own files: the panoptic JSON."),
]
Maps = Annotated[
    Path | None,
    typer.Option(help="For coco without --root, from your own files: folder of the panoptic PNGs."),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="For coco without --root, from your own files: name of the split, such as train."
    ),
]
Splits = Annotated[
    str | None, typer.Option(help="Splits, separated by commas. Default: all that exist.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first images of each split.")]
Tasks = Annotated[
    str | None,
    typer.Option(help="Tasks, separated by commas. Default: all that the data has truth for."),
]
Shards = Annotated[int | None, typer.Option(min=1, help="Number of shards per split.")]
DropEmpty = Annotated[bool, typer.Option("--drop-empty", help="Leave out images without truth.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first image that the doctor rejects.")
]
HoldOut = Annotated[
    float | None,
    typer.Option(
        help="Share of the photographs, such as 0.1, that become the set val, if the data has only "
        "one split; crops of one photograph stay together (docs/try.md)."
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        help="Staging folder for uploads if --out is a URL; it needs space for one shard per "
        "process. Default: ~/.cache/mask2former/build."
    ),
]


def build(
    source: Source,
    out: Out,
    root: Root = None,
    images: Images = None,
    instances: Instances = None,
    panoptic: Panoptic = None,
    maps: Maps = None,
    split: Split = None,
    splits: Splits = None,
    limit: Limit = None,
    jobs: Processes = None,
    tasks: Tasks = None,
    shards: Shards = None,
    drop_empty: DropEmpty = False,
    strict: Strict = False,
    hold_out: HoldOut = None,
    on: On = "auto",
    site: Site = None,
    dry_run: DryRun = False,
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Convert a raw data set into shards, and print which tasks can be trained on them.

    An interrupted build resumes if you run the same command again.
    """
    from jobs.build import build as job
    from jobs.build import raw_data
    from jobs.cluster import dispatch
    from shards.build.options import BuildOptions

    target, facts = dispatch.resolve(on, site, dry_run)
    if target.is_submitted:
        given = {"--root": root, "--images": images, "--instances": instances}
        given |= {"--panoptic": panoptic, "--maps": maps, "--out": out}
        dispatch.submit(dispatch.build_job(out, given, target, facts), target, dry_run)
        return

    def run() -> dict[str, Any]:
        files = {"images": images, "instances": instances, "panoptic": panoptic, "maps": maps}
        data, names = raw_data(root, splits, files, split)
        options = BuildOptions(
            source,
            data,
            out,
            names,
            limit=limit,
            jobs=jobs,
            tasks=tuple(tasks.split(",")) if tasks else (),
            shards=shards,
            drop_empty=drop_empty,
            strict=strict,
            hold_out=hold_out,
            work=work,
        )
        return job(options, target)

    report(run, as_json)
