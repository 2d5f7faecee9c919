"""The painted data set in COCO's raw layout, with panoptic and instance truth.

Masks, areas, and boxes are exactly those of the visible pixels.
"""

import errno
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.demo.geometry import Array
from jobs.demo.painting import STUFF, THINGS, Scene, paint

MIN_SIDE = 64  # px; the shapes cannot be told apart in smaller images
Entry = dict[str, Any]

_COLORS = {
    1: (230, 85, 70), 2: (66, 135, 205), 4: (245, 185, 60), 7: (150, 95, 190), 9: (45, 165, 130),
    21: (175, 195, 215), 24: (205, 185, 160), 28: (180, 205, 165),
}  # fmt: skip


def generate(root: Path, train: int, val: int, size: int, seed: int) -> None:
    """Write `train` and `val` images of `size` x `size` pixels and their annotations below `root`.

    The annotations of a split are written after its images. The same arguments give the same files.
    Image n of a split depends only on the size, the seed, the split, and n, not on the number of
    images.

    Raises:
        ValueError: The size is below MIN_SIDE.
        OSError: A file cannot be written.
    """
    if size < MIN_SIDE:
        raise ValueError(
            f"size={size}: the shapes need images of at least {MIN_SIDE} pixels a side"
        )
    for stream, (split, count) in enumerate([("train2017", train), ("val2017", val)]):
        _write_split(Path(root), split, count, size, (seed, stream))


def _write_split(root: Path, split: str, count: int, size: int, seed: tuple[int, int]) -> None:
    pictures, maps = root / split, root / "annotations" / f"panoptic_{split}"
    pictures.mkdir(parents=True, exist_ok=True)
    maps.mkdir(parents=True, exist_ok=True)
    images: list[Entry] = []
    panoptic: list[Entry] = []
    instances: list[Entry] = []
    for n in range(1, count + 1):
        rng = np.random.default_rng((*seed, n))
        scene = paint(rng, size)
        stem = f"{n:012d}"
        ids = _segment_ids(rng, [category for category, _ in scene.segments])
        segments, objects = _annotations(scene, ids)
        images.append(
            {"id": n, "file_name": f"{stem}.jpg", "width": size, "height": size, "license": 1,
             "date_captured": "2017-01-01 00:00:00", "coco_url": "", "flickr_url": ""}
        )  # fmt: skip
        panoptic.append({"image_id": n, "file_name": f"{stem}.png", "segments_info": segments})
        for entry in objects:
            instances.append({"id": len(instances) + 1, "image_id": n, **entry})
        _write_image(pictures / f"{stem}.jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        codes = np.array([0, *ids])[scene.owner]
        id_map = np.stack([codes, codes >> 8, codes >> 16], -1).astype(np.uint8)
        _write_image(maps / f"{stem}.png", id_map, [])
    _write_documents(root, split, images, panoptic, instances)


def _annotations(scene: Scene, ids: list[int]) -> tuple[list[Entry], list[Entry]]:
    """Return COCO's entries of a scene: all segments, and the things with their masks."""
    segments: list[Entry] = []
    objects: list[Entry] = []
    for n, (segment_id, (category, iscrowd)) in enumerate(
        zip(ids, scene.segments, strict=True), start=1
    ):
        mask = (scene.owner == n).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        common = {
            "category_id": category,
            "iscrowd": iscrowd,
            "bbox": [x, y, width, height],
            "area": int(mask.sum()),
        }
        segments.append({"id": segment_id, **common})
        if category in THINGS:
            segmentation = run_lengths(mask) if iscrowd else outlines(mask)
            objects.append({"segmentation": segmentation, **common})
    return segments, objects


def _write_documents(
    root: Path, split: str, images: list[Entry], panoptic: list[Entry], instances: list[Entry]
) -> None:
    """Write the two annotation files of a split."""
    head = {
        "info": {"description": f"Painted shapes, {split}", "version": "1.0", "year": 2017,
                 "url": "", "contributor": "", "date_created": "2017/01/01"},
        "licenses": [{"id": 1, "name": "CC0 1.0",
                      "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
    }  # fmt: skip
    things = [{"supercategory": "shape", "id": n, "name": name} for n, name in THINGS.items()]
    stuff = [{"supercategory": "ground", "id": n, "name": name} for n, name in STUFF.items()]
    categories = [
        {
            **category,
            "isthing": int(category["id"] in THINGS),
            "color": list(_COLORS[category["id"]]),
        }
        for category in things + stuff
    ]
    documents = {
        "panoptic": {**head, "annotations": panoptic, "categories": categories},
        "instances": {**head, "annotations": instances, "categories": things},
    }
    for kind, document in documents.items():
        path = root / "annotations" / f"{kind}_{split}.json"
        path.write_text(json.dumps(document))


def _segment_ids(rng: np.random.Generator, categories: list[int]) -> list[int]:
    """Return unique ids R + 256 G + 65536 B near the category's color, as COCO's are."""
    ids: list[int] = []
    for category in categories:
        while True:
            red, green, blue = np.clip(
                np.add(_COLORS[category], rng.integers(-25, 26, 3)), 1, 255
            ).tolist()
            if (code := red + 256 * green + 65536 * blue) not in ids:
                ids.append(code)
                break
    return ids


def outlines(mask: Array) -> list[list[float]]:
    """Return COCO polygons [x0, y0, x1, y1, …] along the pixel edges of a mask.

    pycocotools rasterizes them to exactly the same mask. COCO's polygons have no holes, so a slit
    of zero width joins each hole to its outline.

    OpenCV traces pixel centers, not edges. In a mask of twice the size, an edge pixel has an even
    index at a left or top edge and an odd one otherwise, so (index + 1) // 2 is the pixel corner.

    Args:
        mask: uint8 `[H, W]`.
    """
    doubled = mask.repeat(2, 0).repeat(2, 1)
    contours, links = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [(c[:, 0] + 1) // 2 for c in contours]  # to pixel corners
    polygons = []
    for n, (ring, link) in enumerate(zip(rings, links[0], strict=True)):
        if link[3] < 0:
            parts = [ring]
            for hole, (*_, parent) in zip(rings, links[0], strict=True):
                if parent == n:
                    parts += [ring[:1], hole, hole[:1]]
            path = np.concatenate(parts)
            moved = np.any(path != np.roll(path, 1, axis=0), axis=1)
            polygons.append(path[moved].astype(float).ravel().tolist())
    return polygons


def run_lengths(mask: Array) -> dict[str, Any]:
    """Return COCO's uncompressed run lengths of a mask, uint8 `[H, W]`.

    Runs go down the columns, column by column; the first run is of zeros and may be empty.
    """
    flat = np.concatenate([[0], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.array([0, *edges.tolist(), mask.size]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _write_image(path: Path, rgb: Array, options: list[int]) -> None:
    if not cv2.imwrite(str(path), rgb[..., ::-1], options):
        raise OSError(errno.EIO, "the image cannot be written", str(path))
