"""`index`: tars that others have written, as a shard set."""

from pathlib import Path

from shards.build.index_tars import index_tars
from shards.parallel import processes
from shards.sources.classes import CLASSES


def index(
    folder: Path,
    classes: Path | None,
    image: str | None,
    labels: str | None,
    instances: str | None,
    jobs: int | None,
) -> None:
    """Make the tars in `folder` a shard set where they are, and say so."""
    index_tars(
        folder,
        classes or folder / CLASSES,
        image=image,
        labels=labels,
        instances=instances,
        runner=processes(jobs),
    )
