"""The command that trains on a folder of labeled images with nothing to set."""

from pathlib import Path
from typing import Annotated

import typer


def tryout(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Images with labels: COCO JSON (instances or panoptic), LabelMe JSON, YOLO "
            "segmentation files, or label maps as docs/folder.md has them."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the shards, the run, and the report. Default: try-FOLDER."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Pretrained weights of a backbone, such as resnet50-0676ba61.pth."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Time for training and scoring, about.")
    ] = 10,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build the shards, print the choices, and do not train."),
    ] = False,
) -> None:
    """Train on a folder of your own labeled images, and print why each setting was chosen.

    The same command resumes after an interruption.

    \b
    Example:
      ./launch.sh try photos --minutes 20
    """
    from jobs.tryout.tryout import tryout as job

    job(folder, out or Path(f"try-{folder.absolute().name}"), weights, minutes, dry_run=dry_run)
