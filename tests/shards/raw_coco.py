"""COCO's JSON for one set of two images, with single values changed."""

import copy
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.data.store import Store
from shards.build.build import build
from shards.format.images import image_of
from shards.sources.coco_item import CocoFiles
from shards.verify import verify

POLYGON = [8, 8, 24, 8, 24, 20, 8, 20]
PAIRS = [[8, 8], [24, 8], [24, 20], [8, 20]]
RUNS = [8 * 48 + 8, *[12, 36] * 15, 12, 48 - 20 + 40 * 48]
PACKED = coco_mask.frPyObjects({"size": [48, 64], "counts": RUNS}, 48, 64)["counts"].decode()


def rle(counts=RUNS, size=(48, 64)):
    return {"size": list(size), "counts": counts}


def plain():
    """Return a document of two images that have one rectangle each."""
    photos = [{"id": n, "file_name": f"{name}.png", "width": 64, "height": 48}
              for n, name in enumerate("ab", 1)]  # fmt: skip
    entry = {"iscrowd": 0, "area": 192, "bbox": [8, 8, 16, 12], "segmentation": [POLYGON]}
    annotations = [{"id": n, "image_id": n, "category_id": n, **entry} for n in (1, 2)]
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "7"}]
    return copy.deepcopy({"images": photos, "annotations": annotations, "categories": names})


def made(folder: Path, document, report=None, strict=False, names=("a.png", "b.png")) -> Path:
    """Build a set of a document, check that every reader accepts it, and return its folder."""
    for n, name in enumerate(names):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "a.json").write_text(text.replace('"1e400"', "1e400"))
    files = CocoFiles(folder / "photos", folder / "a.json")
    report = (lambda line: None) if report is None else report.append
    out = folder / "out"
    build("coco", files, out, splits=["train"], jobs=1, shards=1, strict=strict, report=report)
    verify(str(out), sample=None, repair=False, report=lambda line: None)
    store = Store(out / "train")
    for n in range(len(store)):
        image_of(store.load(n))
    return out / "train"


def samples(folder):
    store = Store(folder)
    return {sample.key: sample for sample in map(store.load, range(len(store)))}


def of_all(where, **change):
    """Apply functions to fields of every entry of a list."""

    def apply(document):
        for entry in document[where]:
            entry.update({name: function(entry[name]) for name, function in change.items()})

    return apply


def first(where, **fields):
    """Set fields of the first entry of a list; `...` removes the field."""

    def apply(document):
        entry = document[where][0]
        entry.update(fields)
        for name in [name for name, value in entry.items() if value is ...]:
            del entry[name]

    return apply


def annotation(**fields):
    return first("annotations", **fields)


def photo(**fields):
    return first("images", **fields)


def reorder(document):
    for entries in document.values():
        entries.reverse()
