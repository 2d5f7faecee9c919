"""The painted world as a data set in COCO's raw panoptic + instances layout.

Masks, areas and boxes are those of the visible pixels, exactly.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.demo.painting import STUFF, THINGS, Array, paint

_COLORS = {
    1: (230, 85, 70), 2: (66, 135, 205), 4: (245, 185, 60), 7: (150, 95, 190), 9: (45, 165, 130),
    21: (175, 195, 215), 24: (205, 185, 160), 28: (180, 205, 165),
}  # fmt: skip


def generate(root: Path, train: int, val: int, size: int, seed: int) -> None:
    """Write `train` + `val` images of `size` x `size` pixels below `root`, annotations last.

    The same arguments give the same files, and image n of a split does not depend on how many
    follow. The splits draw from different random streams. Raises ValueError for sides too small to
    tell the shapes apart.
    """
    if size < 64:
        raise ValueError(f"size={size}: the shapes need images of at least 64 pixels a side")
    for stream, (split, count) in enumerate([("train2017", train), ("val2017", val)]):
        _write_split(Path(root), split, count, size, (seed, stream))


def _write_split(root: Path, split: str, count: int, size: int, seed: tuple[int, int]) -> None:
    pictures, maps = root / split, root / "annotations" / f"panoptic_{split}"
    pictures.mkdir(parents=True, exist_ok=True)
    maps.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    panoptic: list[dict] = []
    instances: list[dict] = []
    for n in range(1, count + 1):
        rng = np.random.default_rng((*seed, n))
        painted = paint(rng, size)
        stem = f"{n:012d}"
        ids = _segment_ids(rng, [category for category, _ in painted.segments])
        infos = []
        for value, (segment_id, (category, iscrowd)) in enumerate(
            zip(ids, painted.segments, strict=True), start=1
        ):
            mask = (painted.owner == value).astype(np.uint8)
            x, y, w, h = cv2.boundingRect(mask)
            about = {
                "category_id": category,
                "iscrowd": iscrowd,
                "bbox": [x, y, w, h],
                "area": int(mask.sum()),
            }
            infos.append({"id": segment_id, **about})
            if category in THINGS:
                shape = run_lengths(mask) if iscrowd else outlines(mask)
                instances.append(
                    {"id": len(instances) + 1, "image_id": n, "segmentation": shape, **about}
                )
        images.append(
            {"id": n, "file_name": f"{stem}.jpg", "width": size, "height": size, "license": 1,
             "date_captured": "2017-01-01 00:00:00", "coco_url": "", "flickr_url": ""}
        )  # fmt: skip
        panoptic.append({"image_id": n, "file_name": f"{stem}.png", "segments_info": infos})
        codes = np.array([0, *ids])[painted.owner]
        _write_image(pictures / f"{stem}.jpg", painted.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        _write_image(
            maps / f"{stem}.png",
            np.stack([codes, codes >> 8, codes >> 16], -1).astype(np.uint8),
            [],
        )

    head = {
        "info": {"description": f"Painted shapes, {split}", "version": "1.0", "year": 2017,
                 "url": "", "contributor": "", "date_created": "2017/01/01"},
        "licenses": [{"id": 1, "name": "CC0 1.0",
                      "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
    }  # fmt: skip
    things = [{"supercategory": "shape", "id": n, "name": name} for n, name in THINGS.items()]
    stuff = [{"supercategory": "ground", "id": n, "name": name} for n, name in STUFF.items()]
    everything = [
        {**c, "isthing": int(c["id"] in THINGS), "color": list(_COLORS[c["id"]])}
        for c in things + stuff
    ]
    _write_json(
        root, f"panoptic_{split}", {**head, "annotations": panoptic, "categories": everything}
    )
    _write_json(
        root, f"instances_{split}", {**head, "annotations": instances, "categories": things}
    )


def _segment_ids(rng: np.random.Generator, categories: list[int]) -> list[int]:
    """Unique ids R + 256 G + 65536 B that look like the category's color, as COCO's do."""
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
    """COCO polygons [x0, y0, x1, y1, …] along the pixel edges of `mask` (uint8 [H, W]).

    pycocotools rasterises them back to exactly `mask`. COCO's polygons know no holes: a hole is
    joined to its outline by a slit of no width.
    """
    doubled = mask.repeat(2, 0).repeat(2, 1)
    contours, links = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [(c[:, 0] + 1) // 2 for c in contours]  # centers of half pixels -> corners of pixels
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
    """COCO's uncompressed run lengths of `mask` (uint8 [H, W]): column by column, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def _write_image(path: Path, rgb: Array, options: list[int]) -> None:
    if not cv2.imwrite(str(path), rgb[..., ::-1], options):
        raise OSError(f"{path} could not be written")


def _write_json(root: Path, name: str, content: dict) -> None:
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content))
