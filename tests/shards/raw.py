"""Raw COCO sets for the tests: the CC BY sample, and tiny sets with known content."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SAMPLE = Path(__file__).parent.parent / "data" / "coco_ccby"
CATEGORIES = [  # out of order on purpose: classes are sorted by id
    {"id": 90, "name": "sky", "isthing": 0, "color": [1, 2, 3], "supercategory": "x"},
    {"id": 7, "name": "dog", "isthing": 1, "color": [4, 5, 6], "supercategory": "x"},
    {"id": 3, "name": "cat", "isthing": 1, "color": [7, 8, 9], "supercategory": "x"},
]


@dataclass
class RawImage:
    """One image and its annotations.

    Attributes:
        name: The file name.
        size: The width and height in pixels.
        ids: The panoptic ids, `[H, W]`; None for an image without a panoptic annotation.
        categories: The category of every panoptic id.
        masks: (category, mask `bool [H, W]`, iscrowd) of every instance annotation.
    """

    name: str
    size: tuple[int, int] = (32, 24)
    ids: np.ndarray | None = None
    categories: dict[int, int] = field(default_factory=dict)
    masks: list[tuple[int, np.ndarray, int]] = field(default_factory=list)


def sky(name: str, size: tuple[int, int] = (32, 24)) -> RawImage:
    """Return an image that is all sky, a stuff class, and has no instances."""
    return RawImage(name, size, np.full(size[::-1], 70000), {70000: 90})


def write(
    root: Path,
    images: list[RawImage],
    split: str = "val",
    panoptic: bool = True,
    instances: bool = True,
) -> Path:
    """Write `images` in COCO's layout under `root`, and return `root`."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    listed = []
    for number, image in enumerate(images, 1):
        path = root / f"{split}2017" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*image.size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        width, height = image.size
        entry = {"id": number, "file_name": image.name, "width": width, "height": height}
        listed.append({**entry, "license": 4, "flickr_url": f"http://example.org/{number}"})
    common = {"images": listed, "licenses": [{"id": 4, "name": "BY", "url": "http://cc/by"}]}
    if panoptic:
        annotations = [_panoptic(root, split, n, i) for n, i in enumerate(images, 1)]
        document = {
            **common,
            "annotations": [annotation for annotation in annotations if annotation],
            "categories": CATEGORIES,
        }
        (root / f"annotations/panoptic_{split}2017").mkdir(exist_ok=True)
        (root / f"annotations/panoptic_{split}2017.json").write_text(json.dumps(document))
    if instances:
        things = [{"id": c["id"], "name": c["name"]} for c in CATEGORIES if c["isthing"]]
        masks = [(n, *mask) for n, image in enumerate(images, 1) for mask in image.masks]
        annotations = [_instance(i, *mask) for i, mask in enumerate(masks, 100)]
        document = {**common, "annotations": annotations, "categories": things}
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(document))
    return root


def _panoptic(root: Path, split: str, number: int, image: RawImage) -> dict[str, Any] | None:
    """Write the panoptic PNG of an image, and return its annotation; None if it has none."""
    if image.ids is None:
        return None
    name = Path(image.name).with_suffix(".png")
    path = root / f"annotations/panoptic_{split}2017" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [image.ids >> shift & 255 for shift in (0, 8, 16)]
    Image.fromarray(np.stack(channels, -1).astype(np.uint8)).save(path)
    segments = [
        {
            "id": id,
            "category_id": category,
            "iscrowd": 0,
            "area": int((image.ids == id).sum()),
            "bbox": [0, 0, 1, 1],
        }
        for id, category in image.categories.items()
    ]
    return {"image_id": number, "file_name": str(name), "segments_info": segments}


def _instance(
    id: int, image_id: int, category: int, mask: np.ndarray, iscrowd: int
) -> dict[str, Any]:
    flat = np.concatenate([[False], mask.T.ravel(), [False]])  # column by column
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    counts = np.diff([0, *edges, mask.size]).tolist()
    return {
        "id": id,
        "image_id": image_id,
        "category_id": category,
        "iscrowd": iscrowd,
        "area": int(mask.sum()),
        "bbox": [0, 0, 1, 1],
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }


def edit(path: Path, change: Any) -> None:
    """Apply `change` to the JSON document in a file."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def panoptic_ids(png: bytes | Path) -> np.ndarray:
    """Decode the publisher's ids of a panoptic PNG with PIL, `int64 [H, W]`."""
    picture = Image.open(io.BytesIO(png) if isinstance(png, bytes) else png).convert("RGB")
    red, green, blue = np.moveaxis(np.asarray(picture, np.int64), -1, 0)
    return red + 256 * green + 65536 * blue
