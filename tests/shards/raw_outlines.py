"""Generate sets in the layouts of LabelMe and YOLO for the tests."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64, 48  # width, height
TRIANGLE = [(10.0, 5.0), (40.0, 12.0), (20.0, 40.0)]
BOX = [(30.0, 20.0), (60.0, 45.0)]
CIRCLE = [(15.0, 30.0), (15.0, 38.0)]  # center, and a point at the radius of 8


def image(path: Path, seed: int) -> None:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def shape(label: str, points: list, kind: str = "polygon", **more) -> dict:
    """Return a shape of LabelMe."""
    return {"label": label, "points": points, "shape_type": kind, "group_id": None} | more


SHAPES = (shape("cat", TRIANGLE), shape("dog", BOX, "rectangle"), shape("cat", CIRCLE, "circle"))


def labelme(folder: Path, count: int, shapes=SHAPES, first: int = 0) -> Path:
    """Write images with a JSON beside each."""
    for n in range(first, first + count):
        image(folder / f"{n}.png", n)
        document = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{n}.png"}
        document |= {"imageData": None, "imageHeight": SIZE[1], "imageWidth": SIZE[0]}
        (folder / f"{n}.json").write_text(json.dumps(document))
    return folder


def line(category: int, points: list) -> str:
    """Return a line of YOLO."""
    shares = (f"{x / SIZE[0]:.6f} {y / SIZE[1]:.6f}" for x, y in points)
    return f"{category} {' '.join(shares)}\n"


def yolo(root: Path, count: int, split: str = "train", first: int = 0) -> Path:
    """Write images/SPLIT, labels/SPLIT, and data.yaml."""
    labels = root / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnc: 2\nnames: [cat, dog]\n")
    square = [BOX[0], (BOX[1][0], BOX[0][1]), BOX[1], (BOX[0][0], BOX[1][1])]
    for n in range(first, first + count):
        image(root / "images" / split / f"{n}.png", n)
        (labels / f"{n}.txt").write_text(line(0, TRIANGLE) + line(1, square))
    return root


def drawn(points: list, kind: str = "polygon") -> np.ndarray:
    """Return the mask of a shape as Pillow draws it, `bool [H, W]`."""
    canvas = Image.new("1", SIZE)
    draw = ImageDraw.Draw(canvas)
    if kind == "circle":
        (x, y), radius = points[0], np.hypot(*np.subtract(*points))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    else:
        getattr(draw, kind)([tuple(point) for point in points], fill=1)
    return np.array(canvas)
