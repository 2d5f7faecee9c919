"""`build`: raw data to shards, and what the result is good for."""

from pathlib import Path

from shards.build import build as build_shards
from shards.errors import UsageError
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
    build_shards(
        source,
        CocoFiles(**files) if given else root,
        out,
        splits=[split] if given else splits.split(",") if splits else None,
        limit=limit,
        jobs=jobs,
        tasks=tasks.split(",") if tasks else None,
        shards=shards,
        drop_empty=drop_empty,
        strict=strict,
        work=work,
    )
