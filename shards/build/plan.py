"""What goes into which shard, and what its bytes depend on: known before the first one is made."""

import filecmp
from collections import defaultdict
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import xxhash

from shards.build.writer import Job
from shards.doctor import Finding, refuse
from shards.errors import DataError
from shards.format.manifest import digest
from shards.format.schema import SCHEMA, image_ext
from shards.sources.split import Item, Split

SHARD_BYTES = 128 * 2**20  # of raw files, at most, on average
_MORE_BYTES = 12 << 10  # a sample has beyond its raw files: JSON, layers of instances, tar headers


@dataclass(frozen=True)
class Plan:
    """The shards of a split; `inputs` is a digest of all that the finished set depends on."""

    split: Split
    folder: Path
    ext: str
    jobs: list[Job]
    inputs: str
    findings: list[Finding]  # of the split; those of its samples come with the shards

    @property
    def changed(self) -> int:
        """When the newest raw file was changed, ns since epoch."""
        return max(job.changed for job in self.jobs)


def plan_splits(
    splits: list[Split],
    out: Path,
    *,
    limit: int | None,
    shards: int | None,
    drop_empty: bool,
    strict: bool,
) -> list[Plan]:
    """Plan every split. Raises DataError for one without images or with several formats of them,
    and with `strict` for the first finding that rejects."""
    plans: list[Plan] = []
    for split in splits:
        items, findings = _unique(split.items)
        items = sorted(items, key=lambda item: item.key)[:limit]
        findings += [*split.findings, *_seen_before(items, split.name, plans)]
        if strict:
            refuse(findings)
        plans.append(_plan(split, items, findings, out / split.name, shards, drop_empty, strict))
    return plans


def _plan(
    split: Split,
    items: list[Item],
    findings: list[Finding],
    folder: Path,
    shards: int | None,
    drop_empty: bool,
    strict: bool,
) -> Plan:
    exts = {image_ext(item.file_name): item.file_name for item in items}
    if not exts:
        refuse(findings)
        raise DataError(f"{split.name} has no images; give a data set that has some")
    if len(exts) > 1:
        raise DataError(
            f"the images have several formats ({', '.join(exts.values())}); convert them to one"
        )
    stats = [[_stat(path) for path in item.files] for item in items]
    count = shards or _shard_count(sum(size for files in stats for size, _ in files))
    groups: list[list[int]] = [[] for _ in range(count)]
    for place, item in enumerate(items):
        groups[xxhash.xxh3_64_intdigest(item.key.encode()) % count].append(place)
    common = [
        *(SCHEMA, versions(), split.source, split.taxonomy.to_json(), split.truths, drop_empty)
    ]
    jobs = []
    for number, group in enumerate(groups):
        said = [
            (items[i].key, items[i].file_name, items[i].annotation, [size for size, _ in stats[i]])
            for i in group
        ]
        jobs.append(
            Job(
                tar=folder / f"{number:06d}.tar",
                items=[items[i] for i in group],
                inputs=digest([common, said]),
                # ctime, for a file that is swapped for an older one is new to us all the same
                changed=max((time for i in group for _, time in stats[i]), default=0),
                room=sum(max(0, size) for i in group for size, _ in stats[i])
                + len(group) * _MORE_BYTES,
                drop_empty=drop_empty,
                strict=strict,
            )
        )
    found = [astuple(finding) for finding in findings]
    inputs = digest([[job.inputs for job in jobs], split.tasks, split.licenses, found])
    return Plan(split, folder, next(iter(exts)), jobs, inputs, findings)


def versions() -> dict[str, str]:
    """The libraries that shape the bytes of a shard set."""
    named = {name: version(name) for name in ("pyarrow", "pycocotools", "webdataset")}
    return {"opencv": cv2.__version__, **named}


def _unique(items: list[Item]) -> tuple[list[Item], list[Finding]]:
    """The items whose key no other has, and a finding for each of the others."""
    by_key: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_key[item.key].append(item)
    findings = []
    for key, twins in by_key.items():
        if len(twins) > 1:
            names = ", ".join(sorted(item.file_name for item in twins))
            findings += [
                Finding(item.file_name, 17, f"{names} have the key {key}") for item in twins
            ]
    return [twins[0] for twins in by_key.values() if len(twins) == 1], findings


def _seen_before(items: list[Item], name: str, earlier: list[Plan]) -> list[Finding]:
    """A finding for each image that is in an earlier split too, byte by byte."""
    if not earlier:
        return []
    by_size: defaultdict[int, list[tuple[Item, str]]] = defaultdict(list)
    for plan in earlier:
        for job in plan.jobs:
            for item in job.items:
                by_size[_stat(item.files[0])[0]].append((item, plan.split.name))
    by_size.pop(_MISSING[0], None)
    return [
        Finding(item.file_name, 18, f"it is {twin.file_name} of {split}")
        for item in items
        for twin, split in by_size.get(_stat(item.files[0])[0], ())
        if filecmp.cmp(item.files[0], twin.files[0], shallow=False)
    ]


_MISSING = (-1, 0)


def _stat(path: Path) -> tuple[int, int]:
    """Size and ctime (ns) of a file."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    return stat.st_size, stat.st_ctime_ns


def _shard_count(size: int) -> int:
    return 1 << (max(1, -(-size // SHARD_BYTES)) - 1).bit_length()
