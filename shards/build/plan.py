"""Plan which sample goes into which shard, and digest what the bytes of each shard depend on."""

import errno
import filecmp
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import xxhash

from shards.build.options import BuildOptions
from shards.doctor import Finding, refuse
from shards.errors import DataError
from shards.format.index import offsets_path
from shards.format.manifest import digest
from shards.format.schema import SCHEMA, image_ext
from shards.sources.split import Item, Split

STATE = ".build"  # folder beside the shards for their receipts and the lock
SHARD_BYTES = 128 * 2**20  # a shard holds at most this many bytes of raw files, on average
_MORE_BYTES = 12 << 10  # per sample beyond its raw files: JSON, layers of instances, tar headers
_MISSING = (-1, 0)


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard to build.

    Attributes:
        tar: The path of the shard.
        items: Its samples, in order.
        inputs: A digest of everything that the bytes depend on.
        changed: When the newest raw file changed, in ns since the epoch.
        room: The number of bytes that the shard is likely to take.
        drop_empty: Leave out samples without truth.
        strict: Raise an error for a sample that the doctor rejects.
    """

    tar: Path
    items: list[Item]
    inputs: str
    changed: int
    room: int
    drop_empty: bool
    strict: bool

    @property
    def receipt(self) -> Path:
        """The file that says which shard was built from which inputs."""
        return self.tar.parent / STATE / f"{self.tar.stem}.json"

    @property
    def offsets(self) -> Path:
        """The index file beside the shard."""
        return offsets_path(self.tar)


@dataclass(frozen=True)
class SplitPlan:
    """The shards of a split.

    Attributes:
        split: The split of the raw data set.
        folder: The folder where the shards are built.
        ext: The extension of all images.
        shards: The shards, in order.
        inputs: A digest of everything that the finished set depends on.
        findings: Findings from before the samples are read. Those of reading come with the shards.
    """

    split: Split
    folder: Path
    ext: str
    shards: list[ShardPlan]
    inputs: str
    findings: list[Finding]

    @property
    def changed(self) -> int:
        """When the newest raw file changed, in ns since the epoch."""
        return max(shard.changed for shard in self.shards)


def plan_splits(splits: Sequence[Split], out: Path, options: BuildOptions) -> list[SplitPlan]:
    """Plan the shards of every split, below `out`.

    Raises:
        DataError: A split has no images, or the build is strict and a finding rejects an image.
    """
    plans: list[SplitPlan] = []
    for split in splits:
        items, findings = _unique(split.items)
        items, others = _of_one_format(items)
        items = sorted(items, key=lambda item: item.key)[: options.limit]
        findings = [*findings, *others, *split.findings, *_seen_before(items, plans)]
        if options.strict:
            refuse(findings)
        plans.append(_plan(split, items, findings, out / split.name, options))
    return plans


def _plan(
    split: Split, items: list[Item], findings: list[Finding], folder: Path, options: BuildOptions
) -> SplitPlan:
    if not items:
        refuse(findings)
        raise DataError(f"split {split.name} has no images", fix="give a data set that has some")
    ext = image_ext(items[0].file_name)
    stats = [[_stat(path) for path in item.files] for item in items]
    count = options.shards or _shard_count(sum(size for files in stats for size, _ in files))
    groups: list[list[int]] = [[] for _ in range(count)]
    for i, item in enumerate(items):
        groups[xxhash.xxh3_64_intdigest(item.key.encode()) % count].append(i)
    common = [
        *(SCHEMA, versions(), split.source, split.taxonomy.to_json()),
        *(split.truths, options.drop_empty),
    ]
    shards = []
    for number, group in enumerate(groups):
        of_items = [
            (items[i].key, items[i].file_name, items[i].annotation, [size for size, _ in stats[i]])
            for i in group
        ]
        sizes = [size for i in group for size, _ in stats[i]]
        shards.append(
            ShardPlan(
                tar=folder / f"{number:06d}.tar",
                items=[items[i] for i in group],
                inputs=digest([common, of_items]),
                # ctime, because mtime misses a file that was replaced by an older one
                changed=max((time for i in group for _, time in stats[i]), default=0),
                room=sum(max(0, size) for size in sizes) + len(group) * _MORE_BYTES,
                drop_empty=options.drop_empty,
                strict=options.strict,
            )
        )
    of_findings = [astuple(finding) for finding in findings]
    inputs = digest([[shard.inputs for shard in shards], split.tasks, split.licenses, of_findings])
    return SplitPlan(split, folder, ext, shards, inputs, findings)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that determine the bytes of a shard set."""
    named = {name: version(name) for name in ("pyarrow", "pycocotools", "webdataset")}
    return {"opencv": cv2.__version__, **named}


def _unique(items: Sequence[Item]) -> tuple[list[Item], list[Finding]]:
    """Return the items whose key no other item has, and a finding for each of the others."""
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


def _of_one_format(items: list[Item]) -> tuple[list[Item], list[Finding]]:
    """Return the items of the most frequent image format, and a finding for each of the others."""
    counts = Counter(image_ext(item.file_name) for item in items)
    ext, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]), default=("", 0))
    findings = [
        Finding(item.file_name, 23, f"the extension of {count} other images is {ext}")
        for item in items
        if image_ext(item.file_name) != ext
    ]
    return [item for item in items if image_ext(item.file_name) == ext], findings


def _seen_before(items: list[Item], earlier: list[SplitPlan]) -> list[Finding]:
    """Return a finding for each image that an earlier split also holds, byte for byte."""
    if not earlier:
        return []
    by_size: defaultdict[int, list[tuple[Item, str]]] = defaultdict(list)
    for plan in earlier:
        for shard in plan.shards:
            for item in shard.items:
                by_size[_stat(item.files[0])[0]].append((item, plan.split.name))
    by_size.pop(_MISSING[0], None)
    return [
        Finding(item.file_name, 18, f"it is {twin.file_name} of {split}")
        for item in items
        for twin, split in by_size.get(_stat(item.files[0])[0], ())
        if filecmp.cmp(item.files[0], twin.files[0], shallow=False)
    ]


def _stat(path: Path) -> tuple[int, int]:
    """Return the size and the ctime (ns) of a file."""
    try:
        stat = path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        return _MISSING
    return stat.st_size, stat.st_ctime_ns


def _shard_count(size: int) -> int:
    """Return the least power of two of shards that hold SHARD_BYTES or less on average."""
    return 1 << (max(1, -(-size // SHARD_BYTES)) - 1).bit_length()
