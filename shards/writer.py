"""One shard: raw samples in, a USTAR file and its index out, the same bytes every time."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from shards.doctor import Doctor, Finding, Reject, refuse
from shards.files import sha256, whole_file
from shards.index import save_offsets, scan
from shards.manifest import Shard
from shards.schema import encode
from shards.sources.split import Item

STATE = ".build"  # folder beside the shards: what each was made from, and what was found


@dataclass(frozen=True, slots=True)
class Job:
    """A shard to make at `tar` from `items`, in that order.

    `inputs` is a digest of what its bytes depend on, `changed` when a raw file of it last did (ns
    since epoch), `room` the bytes it is likely to take. `drop_empty` leaves out samples without
    truth; `strict` makes a reject an error.
    """

    tar: Path
    items: list[Item]
    inputs: str
    changed: int
    room: int
    drop_empty: bool
    strict: bool


@dataclass(frozen=True, slots=True)
class Made:
    """A finished shard, the rows of its samples and what the doctor found in its items."""

    shard: Shard
    rows: list[dict[str, Any]]
    findings: list[Finding]


def write_shard(job: Job) -> Made:
    """Make a shard, unless an earlier run has, and read it back. Raises DataError, OSError."""
    state = job.tar.parent / STATE / f"{job.tar.stem}.json"
    findings = _found_earlier(job, state)
    finished = findings is not None
    if not finished:
        for left in [state, *job.tar.parent.glob(f"{job.tar.name}.tmp-*")]:  # by a killed process
            left.unlink(missing_ok=True)
        findings = _write(job)
    elif job.strict:
        refuse(findings)
    rows = scan(job.tar)
    save_offsets(job.tar, rows)
    shard = Shard(job.tar.name, job.tar.stat().st_size, sha256(job.tar), len(rows))
    if not finished:
        found = [astuple(finding) for finding in findings]
        said = {"inputs": job.inputs, "sha256": shard.sha256, "findings": found}
        with whole_file(state) as file:
            file.write(json.dumps(said).encode())
    return Made(shard, rows, findings)


def _write(job: Job) -> list[Finding]:
    """Write the samples that the doctor lets pass, and return the findings."""
    findings: list[Finding] = []
    with (
        whole_file(job.tar) as file,
        TarWriter(
            file, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False
        ) as writer,
    ):
        for item in job.items:
            doctor = Doctor(item.file_name)
            try:
                record = item.load(doctor)
            except Reject as reject:
                findings += [*doctor.findings, reject.of(item.file_name)]
                if job.strict:
                    refuse(findings)
                continue
            findings += doctor.findings
            if not (job.drop_empty and record.empty):
                writer.write({"__key__": item.key, **encode(record)})
    return findings


def _found_earlier(job: Job, state: Path) -> list[Finding] | None:
    """The findings of a run that made this shard from the same inputs, if it is still intact."""
    if not (state.is_file() and job.tar.is_file()) or state.stat().st_mtime_ns <= job.changed:
        return None
    said = json.loads(state.read_bytes())
    if (said["inputs"], said["sha256"]) != (job.inputs, sha256(job.tar)):
        return None
    return [Finding(*finding) for finding in said["findings"]]
