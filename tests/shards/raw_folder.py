"""Generate sets in the layout of the folder source for the tests."""

from pathlib import Path

import numpy as np

from tests.shards.raw_maps import blocks, picture, save

SOURCE = "folder"
PREFIX = "plate.1/"  # the folder of an image within its split
CLASSES = """\
name: cells
licence: {name: CC BY 4.0, url: "https://creativecommons.org/licenses/by/4.0/", attribution: Us}
ignored: [255]
classes:
- {id: 0, name: glass}
- {id: 7, name: nucleus, isthing: true, color: [200, 30, 60]}
- {id: 3, name: cell, isthing: true}
- {id: 300, name: edge}
"""


def image(root: Path, split: str, name: str) -> Path:
    """Return the path of an image."""
    return root / "images" / split / "plate.1" / f"{name}.png"


def maps(root: Path, split: str, name: str) -> list[Path]:
    """Return the paths of the label map and of the instance map."""
    return [root / kind / split / "plate.1" / f"{name}.png" for kind in ("labels", "instances")]


def write(root: Path, split: str, name: str, seed: int) -> None:
    """Write a sample with ignored pixels, and things outside every instance."""
    random = np.random.default_rng(seed)
    picture(image(root, split, name), random)
    (root / "classes.yaml").write_text(CLASSES)
    labels = blocks(random, (0, 3, 7, 255, 300))
    number = blocks(random, range(4), cell=12)
    instances = np.where(np.isin(labels, (3, 7)) & (number > 0), 100 * labels + number, 0)
    for path, values in zip(maps(root, split, name), (labels, instances), strict=True):
        save(path, values.astype(np.uint16))
