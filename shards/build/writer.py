"""One shard: raw samples in, a USTAR file and its index out, the same bytes every time."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from webdataset import TarWriter

from shards.build.memory import keep_freed_memory
from shards.doctor import Doctor, Finding, Reject, refuse
from shards.files import sha256, whole_file
from shards.format.codec import encode
from shards.format.index import save_offsets, scan
from shards.format.manifest import Shard
from shards.sources.split import Item

STATE = ".build"  # folder beside the shards: their receipts, and the lock


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

    def receipt(self, job: Job) -> bytes:
        """What is kept in STATE of the shard that `job` was."""
        return json.dumps({"inputs": job.inputs, **asdict(self)}).encode()

    @classmethod
    def of(cls, receipt: bytes, job: Job) -> "Made | None":
        """The shard that a receipt is for, if `job` would make it from the same inputs."""
        try:
            said = json.loads(receipt)
        except ValueError:  # half of it was sent
            return None
        if said.pop("inputs") != job.inputs or "shard" not in said:
            return None
        findings = [Finding(**one) for one in said["findings"]]
        return cls(Shard(**said["shard"]), said["rows"], findings)


def receipt_path(tar: Path) -> Path:
    """The receipt of a shard."""
    return tar.parent / STATE / f"{tar.stem}.json"


def write_shard(job: Job) -> Made:
    """Make a shard, unless an earlier run has, and read it back. Raises DataError, OSError."""
    keep_freed_memory()
    receipt = receipt_path(job.tar)
    made = _made_earlier(job, receipt)
    if made:
        if job.strict:
            refuse(made.findings)
        save_offsets(job.tar, made.rows)
        return made
    for left in [receipt, *job.tar.parent.glob(f"{job.tar.name}.tmp-*")]:  # by a killed process
        left.unlink(missing_ok=True)
    findings = _write(job)
    rows = scan(job.tar)
    save_offsets(job.tar, rows)
    shard = Shard(job.tar.name, job.tar.stat().st_size, sha256(job.tar), len(rows))
    made = Made(shard, rows, findings)
    with whole_file(receipt) as file:
        file.write(made.receipt(job))
    return made


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
                sample = item.load(doctor)
            except Reject as reject:
                findings += [*doctor.findings, reject.of(item.file_name)]
                if job.strict:
                    refuse(findings)
                continue
            findings += doctor.findings
            if not (job.drop_empty and sample.empty):
                writer.write({"__key__": item.key, **encode(sample)})
    return findings


def _made_earlier(job: Job, receipt: Path) -> Made | None:
    """What a run made from the same inputs, if the shard is still intact."""
    if not (receipt.is_file() and job.tar.is_file()) or receipt.stat().st_mtime_ns <= job.changed:
        return None
    made = Made.of(receipt.read_bytes(), job)
    return made if made and made.shard.sha256 == sha256(job.tar) else None
