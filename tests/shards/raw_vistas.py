"""Generate Mapillary Vistas sets (version 1.2) for the tests."""

import json
from pathlib import Path

import numpy as np

from tests.shards.raw import edit
from tests.shards.raw_maps import blocks, picture, save

SOURCE = "vistas"
PREFIX = ""  # the folder of an image within its split
_FOLDERS = {"train": "training", "val": "validation"}
LABELS = [  # readable name, instances, evaluate; the last one means unlabeled
    *(("Bird", True, True), ("Curb", False, True), ("Person", True, True), ("Sky", False, True)),
    ("Unlabeled", False, False),
]


def image(root: Path, split: str, name: str) -> Path:
    """Return the path of an image."""
    return root / _FOLDERS[split] / "images" / f"{name}.jpg"


def maps(root: Path, split: str, name: str) -> list[Path]:
    """Return the paths of the label map, the instance map, and the panoptic map."""
    kinds = "labels", "instances", "panoptic"
    return [root / _FOLDERS[split] / kind / f"{name}.png" for kind in kinds]


def panoptic_json(root: Path, split: str) -> Path:
    """Return the path of the panoptic annotations of a split."""
    return root / _FOLDERS[split] / "panoptic/panoptic_2018.json"


def write(root: Path, split: str, name: str, seed: int) -> None:
    """Write a sample in which instance 3 of the persons is a crowd in the panoptic annotation."""
    random = np.random.default_rng(seed)
    picture(image(root, split, name), random)
    rows = [
        {"name": f"x--{text.lower()}", "readable": text, "instances": instances}
        | {"evaluate": evaluate, "color": [n, 2 * n, 3 * n]}
        for n, (text, instances, evaluate) in enumerate(LABELS)
    ]
    (root / "config.json").write_text(json.dumps({"labels": rows, "version": "1.2"}))
    labels = blocks(random, range(len(LABELS)))
    number = np.where(np.isin(labels, (0, 2)), blocks(random, range(4), cell=12), 0)
    instances = 256 * labels + number
    ids = np.where(labels == 4, 0, 7919 * (instances + 1))
    paths = maps(root, split, name)
    save(paths[0], labels.astype(np.uint8), palette=True)
    save(paths[1], instances.astype(np.uint16))
    save(paths[2], np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8))
    _annotate(panoptic_json(root, split), name, ids)


def _annotate(path: Path, name: str, ids: np.ndarray) -> None:
    """Add an image and its panoptic annotation to the JSON file."""
    new = {"images": [], "annotations": [], "categories": []}
    document = json.loads(path.read_text()) if path.exists() else new
    segments = []
    for id in np.unique(ids[ids > 0]).tolist():
        label, number = divmod(id // 7919 - 1, 256)
        y, x = (axis.tolist() for axis in np.nonzero(ids == id))
        box = [min(x), min(y), max(x) - min(x) + 1, max(y) - min(y) + 1]
        segments.append(
            {"id": id, "category_id": label + 1, "area": len(x), "bbox": box}
            | {"iscrowd": int((label, number) == (2, 3))}
        )
    height, width = ids.shape
    document["images"].append(
        {"id": name, "file_name": f"{name}.jpg", "width": width, "height": height}
    )
    document["annotations"].append(
        {"image_id": name, "file_name": f"{name}.png", "segments_info": segments}
    )
    path.write_text(json.dumps(document))


def forget(root: Path, split: str, name: str) -> None:
    """Remove all segments of a sample from the panoptic JSON."""

    def empty(document):
        for annotation in document["annotations"]:
            if annotation["image_id"] == name:
                annotation["segments_info"] = []

    edit(panoptic_json(root, split), empty)
