"""One shard: raw samples in, a USTAR file and its index out, the same bytes every time."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from shards.files import sha256, whole_file
from shards.index import save_offsets, scan
from shards.manifest import Shard
from shards.schema import encode
from shards.sources.split import Item

STATE = ".build"  # folder beside the shards while they are being made


@dataclass(frozen=True, slots=True)
class Job:
    """A shard to make at `tar` from `items`, in that order.

    `inputs` is the digest of the whole split, `changed` when a raw file last did (ns since epoch).
    """

    tar: Path
    items: list[Item]
    inputs: str
    changed: int


def write_shard(job: Job) -> tuple[Shard, list[dict[str, Any]]]:
    """Make a shard, unless an earlier run has, and read it back. Raises DataError, OSError."""
    state = job.tar.parent / STATE / f"{job.tar.stem}.json"
    finished = _is_finished(job, state)
    if not finished:
        state.unlink(missing_ok=True)
        with (
            whole_file(job.tar) as file,
            TarWriter(
                file, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False
            ) as writer,
        ):
            for item in job.items:
                writer.write({"__key__": item.key, **encode(item.load())})
    rows = scan(job.tar)
    assert [row["key"] for row in rows] == [item.key for item in job.items]
    save_offsets(job.tar, rows)
    shard = Shard(job.tar.name, job.tar.stat().st_size, sha256(job.tar), len(rows))
    if not finished:
        with whole_file(state) as file:
            file.write(json.dumps({"inputs": job.inputs, "sha256": shard.sha256}).encode())
    return shard, rows


def _is_finished(job: Job, state: Path) -> bool:
    """Whether an earlier run made this shard from the same inputs, and it is still intact."""
    if not (state.is_file() and job.tar.is_file()) or state.stat().st_mtime_ns <= job.changed:
        return False
    return json.loads(state.read_bytes()) == {"inputs": job.inputs, "sha256": sha256(job.tar)}
