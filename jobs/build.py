"""`build`: raw data to shards, and what the result is good for."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from jobs.on_ray import tasks as ray_tasks
from shards.build import build as build_shards
from shards.errors import UsageError
from shards.files import is_url
from shards.parallel import Runner
from shards.sources.coco_item import CocoFiles


def build(
    source: str,
    root: Path | None,
    out: Path | str,
    splits: str | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    tasks: str | None = None,
    shards: int | None = None,
    drop_empty: bool = False,
    strict: bool = False,
    *,
    images: Path | None = None,
    instances: Path | None = None,
    panoptic: Path | None = None,
    maps: Path | None = None,
    split: str | None = None,
    work: Path | None = None,
    on: str = "auto",
) -> None:
    """Build the shard sets and say what they serve. `images` to `split` stand for `root`."""
    files = {"images": images, "instances": instances, "panoptic": panoptic, "maps": maps}
    given = [f"--{name}" for name, value in {**files, "split": split}.items() if value]
    if given and (root or splits):
        other = "--root" if root else "--splits"
        raise UsageError(f"{given[0]} does not go with {other}; leave one of them out")
    if given and not (images and split):
        raise UsageError(f"{given[0]} needs --images D and --split NAME; add them")
    if not (given or root):
        raise UsageError("--root is not given; give the folder of the raw data set")
    # absolute, for the processes of a cluster have folders of their own
    files = {name: path and path.absolute() for name, path in files.items()}
    root = root and root.absolute()
    out = out if is_url(out) else Path(out).absolute()
    with _runner(on, jobs, [path for path in (root, *files.values(), out) if path]) as runner:
        build_shards(
            source,
            root or CocoFiles(**files),
            out,
            splits=[split] if given else splits.split(",") if splits else None,
            limit=limit,
            jobs=jobs,
            tasks=tasks.split(",") if tasks else None,
            shards=shards,
            drop_empty=drop_empty,
            strict=strict,
            runner=runner,
            work=work,
        )


@contextlib.contextmanager
def _runner(on: str, jobs: int | None, paths: list[Path | str]) -> Iterator[Runner | None]:
    """What makes the shards: None for processes here, or the tasks of a Ray cluster."""
    address = os.environ.get("RAY_ADDRESS") if on == "auto" else on
    if address in (None, "", "local"):
        yield None
        return
    if on != "auto" and not re.fullmatch(r"(ray://)?[\w.\[\]:-]+:\d+", on):
        raise UsageError(f"--on {on}: give auto, local, HOST:PORT or ray://HOST:PORT")
    if jobs:
        raise UsageError(f"--jobs is for processes here, the shards are made on {address}")
    with ray_tasks(address, [path for path in paths if not is_url(path)]) as runner:
        yield runner
