"""`build`: raw data to shards, and what the result is good for."""

from pathlib import Path

from shards.build import build as build_shards


def build(
    source: str,
    root: Path,
    out: Path,
    splits: str | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    tasks: str | None = None,
    shards: int | None = None,
    drop_empty: bool = False,
    strict: bool = False,
) -> None:
    """Build the shard sets and say what they serve."""
    build_shards(
        source,
        root,
        out,
        splits=splits.split(",") if splits else None,
        limit=limit,
        jobs=jobs,
        tasks=tasks.split(",") if tasks else None,
        shards=shards,
        drop_empty=drop_empty,
        strict=strict,
    )
