"""What the generators of raw data sets with label maps share, and how their shards are compared."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from shards.build.build import build
from shards.format.index import SampleIndex, members
from shards.format.manifest import Manifest
from shards.format.schema import decode

SIZE = 48, 36  # width, height


def blocks(random: np.random.Generator, values: Iterable[int], cell: int = 6) -> np.ndarray:
    """A map `[H, W]` of square cells, each of one of the values, every value in at least one."""
    width, height = SIZE
    rows, columns = height // cell, width // cell
    values = np.array(list(values))
    cells = random.choice(values, rows * columns)
    cells[random.permutation(len(cells))[: len(values)]] = values
    return np.kron(cells.reshape(rows, columns), np.ones((cell, cell), int))


def picture(path: Path, random: np.random.Generator) -> None:
    """A photograph of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (*SIZE[::-1], 3), np.uint8)).save(path)


def save(path: Path, values: np.ndarray, palette: bool = False) -> None:
    """A map as PNG: u8 (with a palette if asked), u16, or u8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette([value for n in range(256) for value in (n, 255 - n, n // 2)])
    image.save(path)


def write(layout: ModuleType, root: Path, train: int = 3, val: int = 2) -> Path:
    """A raw data set in the layout of a generator module, different pictures throughout."""
    for split, count, first in (("train", train, 0), ("val", val, 100)):
        for number in range(count):
            layout.write(root, split, f"{split}{number}", first + number)
    return root


def made(layout: ModuleType, root: Path, out: Path, **options: Any) -> list[str]:
    """Build, and return what was reported."""
    said: list[str] = []
    build(layout.SOURCE, root, out, report=said.append, jobs=1, **options)
    return said


def samples(folder: Path) -> dict[str, Any]:
    """Decoded samples by image id."""
    manifest, index = Manifest.load(folder), SampleIndex.load(folder)
    found = {}
    for i in range(len(index)):
        blob = (folder / manifest.shards[index.shard[i]].name).read_bytes()
        start = int(index.offset[i])
        sample = decode(members(blob[start : start + int(index.length[i])]))
        found[sample["json"]["image_id"]] = sample
    return found


def findings(folder: Path) -> list[tuple[str, int]]:
    """(file, code) of the findings, sorted."""
    lines = (folder / "findings.jsonl").read_text().splitlines()
    return sorted((row["file"], row["code"]) for row in map(json.loads, lines))


def pixels(path: Path) -> np.ndarray:
    """A raw map as integers, by PIL."""
    return np.asarray(Image.open(path)).astype(int)


Expected = dict[int, tuple[int, int, np.ndarray]]  # by id: publisher's category, crowd, mask


def assert_segments(
    entries: list[dict[str, Any]], masks: list[np.ndarray], folder: Path, expected: Expected
) -> None:
    """The entries and their masks are exactly those expected, with areas and boxes of the masks."""
    categories = Manifest.load(folder).taxonomy.categories
    assert sorted(entry["id"] for entry in entries) == sorted(expected)
    for entry, mask in zip(entries, masks, strict=True):
        category, iscrowd, wanted = expected[entry["id"]]
        assert np.array_equal(mask, wanted)
        assert (categories[entry["category"]].id, entry["iscrowd"]) == (category, iscrowd)
        rows, columns = np.nonzero(wanted)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]
        assert (entry["area"], entry["bbox"]) == (int(wanted.sum()), box)


def segment_masks(sample: dict[str, Any]) -> list[np.ndarray]:
    """The masks of the panoptic segments; no other value is in the map."""
    count = len(sample["json"]["segments"])
    assert sample["segments"].max(initial=0) <= count
    return [sample["segments"] == n for n in range(1, count + 1)]


def semantic_labels(sample: dict[str, Any], folder: Path) -> np.ndarray:
    """The semantic map with the publisher's category ids, -1 where it is ignored."""
    ids = np.array([-1, *(c.id for c in Manifest.load(folder).taxonomy.categories)])
    return ids[sample["semantic"]]
