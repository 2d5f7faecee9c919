"""`build`: raw data to shards, and what the result is good for."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.on_ray import tasks as ray_tasks
from shards.build.build import build as build_shards
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
) -> dict[str, dict[str, Any]]:
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
    address = _cluster(on)
    if address:  # whose processes have current folders of their own
        files = {name: path and path.absolute() for name, path in files.items()}
        root = root and root.absolute()
        out = out if is_url(out) else Path(out).absolute()
    with _runner(address, jobs, [root, *files.values(), out]) as runner:
        return build_shards(
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


def _cluster(on: str) -> str | None:
    """The address of the Ray cluster where shards are made, None for this machine."""
    if on == "auto":
        return os.environ.get("RAY_ADDRESS")
    if on != "local" and not re.fullmatch(r"(ray://)?[\w.\[\]:-]+:\d+", on):
        raise UsageError(f"--on {on}: give auto, local, HOST:PORT or ray://HOST:PORT")
    return None if on == "local" else on


@contextlib.contextmanager
def _runner(
    address: str | None, jobs: int | None, places: list[Path | str | None]
) -> Iterator[Runner | None]:
    """What makes the shards: tasks of the cluster, None for processes here."""
    if not address:
        yield None
        return
    if jobs:
        raise UsageError(f"--jobs is for processes here, the shards are made on {address}")
    with ray_tasks(address, [place for place in places if place and not is_url(place)]) as runner:
        yield runner
