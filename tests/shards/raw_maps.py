"""Helpers for generated data sets with label maps, and for comparing the shards made of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from shards.build.build import build
from shards.format.codec import decode
from shards.format.index import SampleIndex
from shards.format.manifest import Manifest
from shards.format.schema import Sample, Segment
from shards.format.tar import members

SIZE = 48, 36  # width, height


def blocks(random: np.random.Generator, values: Iterable[int], cell: int = 6) -> np.ndarray:
    """Return a map `[H, W]` of square cells in which each of the values has at least one cell."""
    width, height = SIZE
    rows, columns = height // cell, width // cell
    values = np.array(list(values))
    cells = random.choice(values, rows * columns)
    cells[random.permutation(len(cells))[: len(values)]] = values
    return np.kron(cells.reshape(rows, columns), np.ones((cell, cell), int))


def picture(path: Path, random: np.random.Generator) -> None:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (*SIZE[::-1], 3), np.uint8)).save(path)


def save(path: Path, values: np.ndarray, palette: bool = False) -> None:
    """Write a map `uint8 [H, W]`, `uint16 [H, W]`, or `uint8 [H, W, 3]` as PNG.

    `palette` adds a palette to a `uint8 [H, W]`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette([value for n in range(256) for value in (n, 255 - n, n // 2)])
    image.save(path)


def write(layout: ModuleType, root: Path, train: int = 3, val: int = 2) -> Path:
    """Write a data set with the generator module `layout`; all images differ."""
    for split, count, first in (("train", train, 0), ("val", val, 100)):
        for number in range(count):
            layout.write(root, split, f"{split}{number}", first + number)
    return root


def made(layout: ModuleType, root: Path, out: Path, **options: Any) -> list[str]:
    """Build shards, and return the reported lines."""
    lines: list[str] = []
    build(layout.SOURCE, root, out, report=lines.append, jobs=1, **options)
    return lines


def samples(folder: Path) -> dict[str, Sample]:
    """Return the decoded samples of a shard set by image id."""
    manifest, index = Manifest.load(folder), SampleIndex.load(folder)
    found = {}
    for i in range(len(index)):
        blob = (folder / manifest.shards[index.shard[i]].name).read_bytes()
        start = int(index.offset[i])
        blob = blob[start : start + int(index.length[i])]
        sample = decode(index.key[i], members(blob))
        found[sample.image_id] = sample
    return found


def findings(folder: Path) -> list[tuple[str, int]]:
    """Return (file, code) of every finding of a shard set, sorted."""
    lines = (folder / "findings.jsonl").read_text().splitlines()
    return sorted((row["file"], row["code"]) for row in map(json.loads, lines))


def pixels(path: Path) -> np.ndarray:
    """Decode a raw map with PIL, `int64 [H, W]`."""
    return np.asarray(Image.open(path)).astype(int)


Expected = dict[int, tuple[int, int, np.ndarray]]  # by id: the publisher's category, crowd, mask


def assert_segments(
    entries: list[Segment], masks: list[np.ndarray], folder: Path, expected: Expected
) -> None:
    """Assert that the entries and masks are those expected, with the masks' areas and boxes."""
    categories = Manifest.load(folder).taxonomy.categories
    assert sorted(entry.id for entry in entries) == sorted(expected)
    for entry, mask in zip(entries, masks, strict=True):
        category, iscrowd, wanted = expected[entry.id]
        assert np.array_equal(mask, wanted)
        assert (categories[entry.category].id, entry.iscrowd) == (category, iscrowd)
        rows, columns = np.nonzero(wanted)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]
        assert (entry.area, entry.bbox) == (int(wanted.sum()), box)


def segment_masks(sample: Sample) -> list[np.ndarray]:
    """Return the mask of every panoptic segment; assert that the map has no other value."""
    assert sample.segments_map.max(initial=0) <= len(sample.segments)
    return [sample.segments_map == n for n, _ in sample.panoptic()]


def semantic_labels(sample: Sample, folder: Path) -> np.ndarray:
    """Return the semantic map with the publisher's category ids, and -1 for ignored pixels."""
    ids = np.array([-1, *(c.id for c in Manifest.load(folder).taxonomy.categories)])
    return ids[sample.semantic]
