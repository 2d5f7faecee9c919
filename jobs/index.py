"""`index`: third-party tars, made a shard set in place."""

from pathlib import Path

from shards.build.index_tars import index_tars
from shards.parallel import processes
from shards.sources.classes import CLASSES


def index(
    folder: Path,
    classes: Path | None,
    out: Path | None,
    image: str | None,
    labels: str | None,
    instances: str | None,
    jobs: int | None,
) -> None:
    """Index the tars in `folder`; see `index_tars`.

    Args:
        folder: The folder of the tars.
        classes: The classes.yaml. Default: the one in `folder`.
        out: The folder of the set. Default: `folder`.
        image: The extension of the images.
        labels: The extension of the label maps.
        instances: The extension of the instance-id maps.
        jobs: Number of processes. Default: the number of CPUs.
    """
    index_tars(
        folder,
        classes or folder / CLASSES,
        out=out,
        image=image,
        labels=labels,
        instances=instances,
        runner=processes(jobs),
    )
