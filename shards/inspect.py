"""The contents of a shard set: counts, classes, sizes, areas, and single samples to draw."""

import difflib
import mmap
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from shards.errors import DataError, UsageError
from shards.files import mapped
from shards.format.images import image_of
from shards.format.index import SampleIndex
from shards.format.manifest import Manifest
from shards.format.read import read_sample, read_truth
from shards.format.schema import Sample, Segment
from shards.parallel import Runner, run

SMALL, LARGE = 32**2, 96**2  # pixels: COCO's bounds between small, medium, and large
NEAR = 10_000  # the largest number of keys that a mistyped key is compared with


@dataclass(frozen=True)
class Tally:
    """Counts of what samples hold, by class and by object.

    Objects are the instances, or the thing segments of a set without instance truth; crowds do not
    count as objects.

    Attributes:
        images: `[K]`, the number of images with each class.
        segments: `[K]`, the number of segments of each class.
        instances: `[K]`, the number of instances of each class.
        pixels: `[K]`, the area of each class: the sum over its segments, or over its instances if
            the set has no segments, or the area in the semantic map if it has neither.
        areas: The area of each object in pixels.
        objects: The number of objects in each sample.
    """

    images: np.ndarray
    segments: np.ndarray
    instances: np.ndarray
    pixels: np.ndarray
    areas: np.ndarray
    objects: np.ndarray

    @classmethod
    def of(cls, tallies: list["Tally"]) -> "Tally":
        """Return the sum of tallies of the same label space."""
        listed = {
            field.name: [getattr(tally, field.name) for tally in tallies] for field in fields(cls)
        }
        per_object = ("areas", "objects")
        return cls(**{
            name: np.concatenate(parts) if name in per_object else np.sum(parts, axis=0)
            for name, parts in listed.items()
        })  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A shard, the byte ranges of its samples, and the manifest of its set."""

    tar: Path
    offsets: list[int]
    lengths: list[int]
    manifest: Manifest


@dataclass(frozen=True)
class ShardSet:
    """A shard set in a folder, with its manifest and index."""

    folder: Path
    manifest: Manifest
    index: SampleIndex

    @classmethod
    def load(cls, folder: Path) -> "ShardSet":
        """Read the manifest and the index.

        Raises:
            DataError: One of them is damaged.
        """
        manifest = Manifest.load(folder)
        return cls(folder, manifest, SampleIndex.load(folder, manifest))


@dataclass(frozen=True)
class Overview(ShardSet):
    """A shard set and the counts of its contents."""

    tally: Tally

    @cached_property
    def sizes(self) -> np.ndarray:
        """The width and height of each image, `[N, 2]`."""
        return np.stack([self.index.width, self.index.height], axis=1).astype(int)

    @cached_property
    def shares(self) -> np.ndarray:
        """The fraction of the labeled pixels that each class has, `[K]`."""
        return self.tally.pixels / max(self.tally.pixels.sum(), 1)

    @cached_property
    def by_size(self) -> tuple[int, int, int]:
        """The numbers of small, medium, and large objects by COCO's bounds."""
        small = int((self.tally.areas < SMALL).sum())
        large = int((self.tally.areas >= LARGE).sum())
        return small, len(self.tally.areas) - small - large, large


def overview(folder: Path, runner: Runner) -> Overview:
    """Count the contents of the shard set in `folder`, shard by shard.

    Raises:
        DataError: The set is damaged or holds no sample.
    """
    opened, parts = ShardSet.load(folder), []
    manifest, index = opened.manifest, opened.index
    if not manifest.samples:
        raise DataError("the set holds no sample", where=folder, fix="build it again")
    for number, shard in enumerate(manifest.shards):
        mine = index.shard == number
        if mine.any():
            offsets, lengths = index.offset[mine].tolist(), index.length[mine].tolist()
            parts.append(Part(folder / shard.name, offsets, lengths, manifest))
    found = run(tally, parts, runner, folder.name, [len(part.offsets) for part in parts])
    return Overview(folder, manifest, index, Tally.of(found))


def tally(part: Part) -> Tally:
    """Count the samples of a shard.

    Only the JSON of the samples is read, and also the semantic maps if the set has no other truth.

    Raises:
        DataError: The shard is damaged.
    """
    counted, manifest = [], part.manifest
    try:
        with mapped(part.tar) as blob:
            if isinstance(blob, mmap.mmap):
                blob.madvise(mmap.MADV_RANDOM)  # the reads skip the images
            for start, length in zip(part.offsets, part.lengths, strict=True):
                sample = read_truth(manifest, f"byte {start}", blob, start, start + length)
                counted.append(_count(sample, manifest.taxonomy.things))
        return Tally.of(counted)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
        raise DataError(f"unreadable ({error})", where=part.tar, fix="verify the set") from error


def _count(sample: Sample, things: Sequence[bool]) -> Tally:
    """Return the tally of one sample."""
    classes = len(things)

    def entries_by_class(entries: Sequence[Segment] | None) -> np.ndarray:
        categories = np.array([entry.category for entry in entries or ()], int)
        return np.bincount(categories, minlength=classes)

    segments, instances = entries_by_class(sample.segments), entries_by_class(sample.instances)
    main = sample.segments if sample.segments is not None else sample.instances
    if main is None:
        pixels = np.bincount(sample.classes().ravel(), minlength=classes + 1)[1:].astype(float)
    else:
        pixels = np.zeros(classes)
        for entry in main:
            pixels[entry.category] += entry.area
    objects = sample.instances_or_things(things)
    areas = [entry.area for entry in objects if things[entry.category] and not entry.iscrowd]
    return Tally(
        images=((pixels > 0) | (segments > 0) | (instances > 0)).astype(int),
        segments=segments,
        instances=instances,
        pixels=pixels,
        areas=np.array(areas, float),
        objects=np.array([len(areas)]),
    )


def pick(overview: Overview, count: int) -> list[int]:
    """Return the positions of `count` random samples, which are the same at every call."""
    total = len(overview.index)
    chance = random.Random(overview.manifest.fingerprint)
    return sorted(chance.sample(range(total), min(count, total)))


def find(sets: list[Path], key: str) -> tuple[ShardSet, int]:
    """Return the set that holds the sample `key`, and its position in the index.

    Raises:
        UsageError: No set holds it.
    """
    known: list[str] = []
    for folder in sets:
        opened = ShardSet.load(folder)
        if key in opened.index.key:
            return opened, opened.index.key.index(key)
        known += opened.index.key
    near = difflib.get_close_matches(key, known[:NEAR], 3, cutoff=0) or ["none"]
    raise UsageError(
        f"no sample {key!r}", where=sets[0].parent, fix=f"similar keys are {', '.join(near)}"
    )


def load(opened: ShardSet, position: int) -> tuple[np.ndarray, Sample]:
    """Return the image, RGB `uint8 [H, W, 3]`, and the sample at a position of a set's index.

    Raises:
        DataError: The sample is damaged.
    """
    index = opened.index
    tar = opened.folder / opened.manifest.shards[index.shard[position]].name
    try:
        with tar.open("rb") as file:
            file.seek(int(index.offset[position]))
            blob = file.read(int(index.length[position]))
        sample = read_sample(opened.manifest, index.key[position], blob)
        return image_of(sample), sample
    except DataError as error:
        raise error.at(f"{tar}: sample {index.key[position]}") from error
    except OSError as error:
        raise DataError(str(error.strerror), where=tar, fix="build the set again") from error
