"""Whether there is room for shards, asked before the first one is made."""

import shutil
from collections.abc import Collection
from pathlib import Path

from shards.build.writer import Job
from shards.errors import Failed


def check_space(out: Path, jobs: Collection[Job]) -> None:
    """Raises Failed where the disk of `out` has too little room for the shards not there yet."""
    needed = sum(job.room for job in jobs if not job.tar.exists())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise Failed(
            f"{out}: the shards to come take about {needed / 2**30:.2f} GiB and {free / 2**30:.2f} "
            "GiB are free; free some, give an --out on a larger disk, or a --limit"
        )
