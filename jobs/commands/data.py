"""Commands that check and describe shard sets, and index tars as one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.commands.options import Json, Processes
from jobs.console import report


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
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that inspect did not write.")
    ] = False,
    jobs: Processes = None,
    as_json: Json = False,
) -> None:
    """Print the classes, sizes, areas, and objects of shard sets, or draw one sample."""

    def job() -> list[dict[str, Any]]:
        from shards.verify import shard_sets

        shard_sets(sets)  # reports a wrong path before seconds of imports
        from jobs.inspect.inspect import inspect as describe

        return describe(sets, key, html, out, jobs, force)

    report(job, as_json)


def index(
    folder: Annotated[Path, typer.Argument(help="Folder of tars that webdataset can read.")],
    classes: Annotated[
        Path | None,
        typer.Option(
            help="YAML of the classes, see docs/folder.md. Default: classes.yaml in the folder."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the index and links to the tars. Default: that of the tars."),
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

    job(folder, classes, out, image, labels, instances, jobs)
