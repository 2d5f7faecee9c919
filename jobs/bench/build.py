"""`build coco` beside the two decodes that every builder needs, and the memory for COCO's truth.

M2F_COCO is a COCO folder with panoptic and instance truth of `train`; without it, the CC BY sample
is read. The photographs are repeated to IMAGES. One process does all of `build`: it reads the
annotation files, checks, encodes, writes, reads back, and hashes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.bench import alternate, row
from jobs.bench.stream_decode import coco
from shards.build.build import build

IMAGES = 280
PHOTOS, INSTANCES, SEGMENTS = 118_287, 860_001, 11  # of COCO train2017; segments per image
READING = """
import json, pathlib, sys, time
from jobs.bench import peak_mib_of
from shards.sources import coco
start = time.perf_counter()
items = coco.read(pathlib.Path(sys.argv[1]), "train", None, lambda line: None).items
taken = time.perf_counter() - start
print(json.dumps([taken, peak_mib_of() * 2**20 / 1e6]))
"""
KINDS = {"instances": INSTANCES, "panoptic": PHOTOS}


def rows() -> list[dict]:
    """Measure the rate of one process from the page cache, and reading truth of COCO's size."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        raw, turns = repeated(coco(), Path(folder) / "raw"), count()
        pairs = files(raw)
        seconds = alternate({
            "build": lambda: build("coco", raw, Path(folder) / f"{next(turns)}", splits=["train"],
                                   jobs=1, report=lambda _: None),
            "decodes": lambda: decodes(pairs),
        })  # fmt: skip
    cv2.setNumThreads(threads)
    ms_per_image = {name: 1000 * taken / len(pairs) for name, taken in seconds.items()}
    with tempfile.TemporaryDirectory() as folder:
        size = synthetic(Path(folder))
        command = [sys.executable, "-c", READING, folder]
        read = subprocess.run(command, capture_output=True, check=True)
        taken, peak = json.loads(read.stdout)
    return [
        row("build.rate", "images/s/core", 1000 / ms_per_image["build"], better="higher",
            target=">= 70"),
        row("build.time", "ms/image", ms_per_image["build"], better="lower", target="<= 2.3x",
            peer=ms_per_image["decodes"], peer_name="JPEG and panoptic PNG decoded"),
        row("build.plan_time.118k", "s", taken, better="lower"),
        row("build.plan_memory.118k", "MB", peak, better="lower", target="< 1500",
            peer=size, peer_name="the JSON files"),
    ]  # fmt: skip


def decodes(pairs: list[tuple[Path, Path]]) -> None:
    """Read and decode every photograph and panoptic map with the decoder of the build."""
    for image, ids in pairs:
        assert cv2.imread(str(image), cv2.IMREAD_COLOR_RGB) is not None
        assert cv2.imread(str(ids), cv2.IMREAD_COLOR_RGB) is not None


def files(raw: Path) -> list[tuple[Path, Path]]:
    """Return the paths of the photograph and the panoptic map of every image of `train`."""
    document = json.loads((raw / "annotations/panoptic_train2017.json").read_text())
    maps = {entry["image_id"]: entry["file_name"] for entry in document["annotations"]}
    return [
        (raw / "train2017" / image["file_name"],
         raw / "annotations/panoptic_train2017" / maps[image["id"]])
        for image in document["images"] if image["id"] in maps
    ]  # fmt: skip


def repeated(raw: Path, folder: Path) -> Path:
    """Write COCO's layout with the `train` images of `raw` repeated to IMAGES, as links."""
    maps = "annotations/panoptic_train2017"
    documents = {
        kind: json.loads((raw / f"annotations/{kind}_train2017.json").read_text()) for kind in KINDS
    }
    copies = range(-(-IMAGES // len(documents["panoptic"]["images"])))
    for part in ("train2017", maps):
        (folder / part).mkdir(parents=True)
        for copy in copies:
            (folder / part / str(copy)).symlink_to((raw / part).absolute())
    for kind, document in documents.items():
        for part in ("images", "annotations"):
            document[part] = [_copied(entry, n) for n in copies for entry in document[part]]
        (folder / f"annotations/{kind}_train2017.json").write_text(json.dumps(document))
    return folder


def _copied(entry: dict[str, Any], copy: int) -> dict[str, Any]:
    """Return an image or annotation with the ids and the file name of a copy."""
    ids = {name: entry[name] + copy * 10**13 for name in ("id", "image_id") if name in entry}
    names = {name: f"{copy}/{entry[name]}" for name in ("file_name",) if name in entry}
    return entry | ids | names


def synthetic(folder: Path) -> float:
    """Write annotation files of COCO's size, without pictures, and return their size in MB."""
    for part in ("train2017", "annotations/panoptic_train2017"):
        (folder / part).mkdir(parents=True)
    size = 0
    for kind, annotations in KINDS.items():
        path = folder / f"annotations/{kind}_train2017.json"
        with path.open("w") as file:
            file.write('{"categories": [{"id": 1, "name": "a", "isthing": 1}], "images": [')
            file.write(",".join(_photos()))
            file.write('], "annotations": [')
            file.write(next(entries := _annotations(kind, annotations)))
            file.writelines(f",{entry}" for entry in entries)
            file.write("]}")
        size += path.stat().st_size / 1e6
    return size


def _photos() -> Iterator[str]:
    """Yield the JSON of the entries of `images`."""
    for id in range(PHOTOS):
        name = f"{id:012d}"
        yield json.dumps({
            "id": id, "file_name": f"{name}.jpg", "width": 640, "height": 480, "license": 1,
            "flickr_url": f"http://farm.example.org/{name}_z.jpg",
            "coco_url": f"http://images.example.org/train2017/{name}.jpg",
            "date_captured": "2013-11-14 11:18:45",
        })  # fmt: skip


def _annotations(kind: str, total: int) -> Iterator[str]:
    """Yield the JSON of the entries of `annotations`."""
    numbers = np.random.default_rng(0).uniform(0, 480, 4096).round(2)
    common = {"category_id": 1, "iscrowd": 0, "area": 702.1, "bbox": numbers[:4].tolist()}
    for id in range(total):
        if kind == "instances":
            polygon = numbers[id % 4000 :][:54].tolist()  # 27 points, which gives COCO's 450 MB
            entry = {"id": id, "image_id": id % PHOTOS, "segmentation": [polygon], **common}
        else:
            segments = [{"id": 1000 * id + n, **common} for n in range(SEGMENTS)]
            entry = {"image_id": id, "file_name": f"{id:012d}.png", "segments_info": segments}
        yield json.dumps(entry)
