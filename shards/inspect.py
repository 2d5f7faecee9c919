"""What is in a finished shard set: counts, classes, sizes, areas, and single samples to look at."""

import difflib
import json
import mmap
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.errors import DataError, UsageError
from shards.format import foreign
from shards.format.index import SampleIndex, member, members
from shards.format.manifest import Manifest
from shards.format.schema import SEMANTIC, Sample, decode, png_size
from shards.parallel import Runner, run
from shards.verify import decode_image

SMALL, LARGE = 32**2, 96**2  # pixels: COCO's bounds of small, medium and large objects
NEAR = 10_000  # keys that a mistyped one is compared with


@dataclass(frozen=True)
class Tally:
    """What samples hold, by class `[K]` and by object.

    `images` counts those with the class, `segments` and `instances` entries, `pixels` the area that
    the truth gives the class: that of the semantic map or of segments, else of instances. Objects
    are instances, or where there is no instance truth the things among the segments; crowds are
    none. `areas` are theirs in pixels, `objects` their number in each sample.
    """

    images: np.ndarray
    segments: np.ndarray
    instances: np.ndarray
    pixels: np.ndarray
    areas: np.ndarray
    objects: np.ndarray

    @classmethod
    def of(cls, tallies: list["Tally"]) -> "Tally":
        """All of several tallies of the same label space."""
        listed = {
            field.name: [getattr(one, field.name) for one in tallies] for field in fields(cls)
        }
        per_object = ("areas", "objects")
        return cls(**{
            name: np.concatenate(parts) if name in per_object else np.sum(parts, axis=0)
            for name, parts in listed.items()
        })  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A shard and the places of its samples in bytes, of the set that `manifest` tells of."""

    tar: Path
    offsets: list[int]
    lengths: list[int]
    manifest: Manifest


@dataclass(frozen=True)
class ShardSet:
    """A shard set in a folder, its manifest and index read once."""

    folder: Path
    manifest: Manifest
    index: SampleIndex

    @classmethod
    def load(cls, folder: Path) -> "ShardSet":
        """Raises DataError for damage."""
        return cls(folder, Manifest.load(folder), SampleIndex.load(folder))


@dataclass(frozen=True)
class Overview(ShardSet):
    """A shard set and what is in it."""

    tally: Tally

    @cached_property
    def sizes(self) -> np.ndarray:
        """Width and height of every image, `[N, 2]`."""
        return np.stack([self.index.width, self.index.height], axis=1).astype(int)

    @cached_property
    def shares(self) -> np.ndarray:
        """The part of the labeled pixels that each class has, `[K]`."""
        return self.tally.pixels / max(self.tally.pixels.sum(), 1)

    @cached_property
    def by_size(self) -> tuple[int, int, int]:
        """How many objects are small, medium and large, as COCO's evaluation has it."""
        small = int((self.tally.areas < SMALL).sum())
        large = int((self.tally.areas >= LARGE).sum())
        return small, len(self.tally.areas) - small - large, large


def overview(folder: Path, runner: Runner) -> Overview:
    """Count what the shard set in `folder` holds, shard by shard. Raises DataError for damage."""
    opened, parts = ShardSet.load(folder), []
    manifest, index = opened.manifest, opened.index
    for number, shard in enumerate(manifest.shards):
        mine = index.shard == number
        if mine.any():
            offsets, lengths = index.offset[mine].tolist(), index.length[mine].tolist()
            parts.append(Part(folder / shard.name, offsets, lengths, manifest))
    found = run(tally, parts, runner, folder.name, [len(part.offsets) for part in parts])
    return Overview(folder, manifest, index, Tally.of(found))


def tally(part: Part) -> Tally:
    """Count a shard's samples: of each its JSON is read, and its semantic map if that is all."""
    counted, things = [], part.manifest.taxonomy.things
    try:
        with (
            part.tar.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob,
        ):
            blob.madvise(mmap.MADV_RANDOM)  # images are stepped over
            for start, length in zip(part.offsets, part.lengths, strict=True):
                place = start, start + length
                if part.manifest.foreign:
                    sample = foreign.load(blob[slice(*place)], part.manifest)
                    counted.append(_count(sample["json"], partial(sample.get, "semantic"), things))
                else:
                    document = json.loads(member(blob, *place, "json"))
                    semantic = partial(_semantic, blob, place, document)
                    counted.append(_count(document, semantic, things))
        return Tally.of(counted)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
        raise DataError(f"{part.tar}: unreadable ({error}); see what verify says of it") from error


def _semantic(blob: mmap.mmap, place: tuple[int, int], document: dict[str, Any]) -> np.ndarray:
    png = member(blob, *place, SEMANTIC)
    if png_size(png) != (document["width"], document["height"]):
        raise DataError("a semantic map is not of its image's size")
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def _count(
    document: dict[str, Any], semantic: Callable[[], np.ndarray], things: tuple[bool, ...]
) -> Tally:
    """The tally of one sample. `semantic` gives its semantic map, if the document lists nothing."""
    classes = len(things)
    segments, instances = document.get("segments", []), document.get("instances", [])
    of_class = {
        name: np.bincount(
            np.array([entry["category"] for entry in entries], int), minlength=classes
        )
        for name, entries in (("segments", segments), ("instances", instances))
    }
    if document.keys().isdisjoint(of_class):
        pixels = np.bincount(semantic().ravel(), minlength=classes + 1)[1:].astype(float)
    else:
        main = segments if "segments" in document else instances
        pixels = np.zeros(classes)
        for entry in main:
            pixels[entry["category"]] += entry["area"]
    objects = instances if "instances" in document else segments
    areas = [
        entry["area"] for entry in objects if things[entry["category"]] and not entry["iscrowd"]
    ]
    present = (pixels > 0) | (of_class["segments"] > 0) | (of_class["instances"] > 0)
    return Tally(
        images=present.astype(int),
        **of_class,
        pixels=pixels,
        areas=np.array(areas, float),
        objects=np.array([len(areas)]),
    )


def pick(overview: Overview, count: int) -> list[int]:
    """Places of `count` samples of a set, by chance and always the same."""
    total = len(overview.index)
    chance = random.Random(overview.manifest.fingerprint)
    return sorted(chance.sample(range(total), min(count, total)))


def find(sets: list[Path], key: str) -> tuple[ShardSet, int]:
    """The set that holds the sample `key`, and its place there. Raises UsageError if none does."""
    known: list[str] = []
    for folder in sets:
        opened = ShardSet.load(folder)
        if key in opened.index.key:
            return opened, opened.index.key.index(key)
        known += opened.index.key
    near = difflib.get_close_matches(key, known[:NEAR], 3, cutoff=0) or ["none"]
    raise UsageError(f"no sample {key!r} in {sets[0].parent}; near it are {', '.join(near)}")


def load(opened: ShardSet, place: int) -> tuple[np.ndarray, Sample]:
    """A sample and its decoded image, u8 RGB `[H, W, 3]`. Raises DataError if it is damaged."""
    index = opened.index
    tar = opened.folder / opened.manifest.shards[index.shard[place]].name
    try:
        with tar.open("rb") as file:
            file.seek(int(index.offset[place]))
            blob = file.read(int(index.length[place]))
        if opened.manifest.foreign:
            sample = foreign.load(blob, opened.manifest)
        else:
            sample = decode(members(blob))
        return decode_image(sample), sample
    except (DataError, OSError) as error:
        raise DataError(f"{tar}: sample {index.key[place]}: {error}") from error


def layers(sample: Sample) -> dict[str, tuple[np.ndarray, list[dict[str, Any]]]]:
    """Each truth of a sample as something to draw: a map `[H, W]` of ids, 0 = none, and entries
    with `id` and `category`. Of instances that overlap the smaller are on top."""
    document, found = sample["json"], {}
    if sample["segments"] is not None:
        numbered = [entry | {"id": n} for n, entry in enumerate(document["segments"], start=1)]
        found["panoptic"] = sample["segments"], numbered
    if sample["layers"] is not None:
        ids = np.zeros(sample["layers"].shape[1:], np.int32)
        numbered = [entry | {"id": n} for n, entry in enumerate(document["instances"], start=1)]
        for entry in sorted(numbered, key=lambda entry: -entry["area"]):
            ids[sample["layers"][entry["layer"]] == entry["value"]] = entry["id"]
        found["instances"] = ids, numbered
    if sample["semantic"] is not None:
        present = np.flatnonzero(np.bincount(sample["semantic"].ravel())).tolist()
        entries = [{"id": value, "category": value - 1} for value in present if value]
        found["semantic"] = sample["semantic"], entries
    return found
