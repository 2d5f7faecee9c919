"""Build one shard, a USTAR file with its index, from raw samples, with reproducible bytes."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from webdataset.writer import TarWriter

from shards.build.memory import keep_freed_memory
from shards.build.plan import ShardPlan
from shards.checked import checked
from shards.doctor import Doctor, Finding, Reject, refuse
from shards.files import parse_json, sha256, whole_file
from shards.format.codec import encode
from shards.format.index import save_offsets, scan
from shards.format.manifest import Shard


@dataclass(frozen=True, slots=True)
class BuiltShard:
    """A finished shard.

    Attributes:
        shard: Its entry in the manifest.
        rows: The rows of its samples in the index of the set.
        findings: What the doctor found in its items.
    """

    shard: Shard
    rows: list[dict[str, Any]]
    findings: list[Finding]

    def to_receipt(self, plan: ShardPlan) -> bytes:
        """Return the receipt: this shard, and the inputs that it was built from."""
        return json.dumps({"inputs": plan.inputs, **asdict(self)}).encode()

    @classmethod
    def from_receipt(cls, receipt: bytes, plan: ShardPlan) -> "BuiltShard | None":
        """Return the shard of a receipt, or None if the inputs of `plan` are not its inputs."""
        try:
            document = checked(dict[str, Any], parse_json(receipt))
            inputs = document.pop("inputs", None)
            return checked(cls, document) if inputs == plan.inputs else None
        except ValueError:  # only a part of the receipt was uploaded
            return None


def write_shard(plan: ShardPlan) -> BuiltShard:
    """Build a shard and read it back, unless an earlier run has built it.

    Raises:
        DataError: The build is strict and the doctor rejects a sample.
        OSError: The disk is full, or a file cannot be read or written.
    """
    keep_freed_memory()
    built = _built_earlier(plan)
    if built:
        if plan.strict:
            refuse(built.findings)
        save_offsets(plan.tar, built.rows)
        return built
    plan.receipt.unlink(missing_ok=True)
    for partial in plan.tar.parent.glob(f"{plan.tar.name}.tmp-*"):  # of a killed process
        partial.unlink(missing_ok=True)
    findings = _write(plan)
    rows = scan(plan.tar)
    save_offsets(plan.tar, rows)
    shard = Shard(plan.tar.name, plan.tar.stat().st_size, sha256(plan.tar), len(rows))
    built = BuiltShard(shard, rows, findings)
    with whole_file(plan.receipt) as file:
        file.write(built.to_receipt(plan))
    return built


def _write(plan: ShardPlan) -> list[Finding]:
    """Write the samples that the doctor does not reject, and return the findings."""
    findings: list[Finding] = []
    with (
        whole_file(plan.tar) as file,
        TarWriter(
            file, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False
        ) as writer,
    ):
        for item in plan.items:
            doctor = Doctor(item.file_name)
            try:
                sample = item.load(doctor)
                members = {} if plan.drop_empty and sample.empty else encode(sample)
            except Reject as reject:
                findings += [*doctor.findings, reject.of(item.file_name)]
                if plan.strict:
                    refuse(findings)
                continue
            findings += doctor.findings
            if members:
                writer.write({"__key__": item.key, **members})
    return findings


def _built_earlier(plan: ShardPlan) -> BuiltShard | None:
    """Return the shard if an earlier run built it from the same inputs and it is intact."""
    if not (plan.receipt.is_file() and plan.tar.is_file()):
        return None
    if plan.receipt.stat().st_mtime_ns <= plan.changed:
        return None
    built = BuiltShard.from_receipt(plan.receipt.read_bytes(), plan)
    return built if built and built.shard.sha256 == sha256(plan.tar) else None
