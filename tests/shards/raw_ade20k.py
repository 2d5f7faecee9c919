"""Generate ADE20K sets for the tests."""

from pathlib import Path

import numpy as np

from tests.shards.raw_maps import blocks, picture, save

SOURCE = "ade20k"
PREFIX = ""  # the folder of an image within its split
_FOLDERS = {"train": "training", "val": "validation"}
STUFF = (1, 3, 4, 146)  # wall, sky, floor, shower
THINGS = {8: 1, 13: 4, 150: 100}  # bed, person, flag: the n-th of the 100 things


def image(root: Path, split: str, name: str) -> Path:
    """Return the path of an image."""
    return root / "images" / _FOLDERS[split] / f"{name}.jpg"


def maps(root: Path, split: str, name: str) -> list[Path]:
    """Return the paths of the semantic map and of the instance map."""
    kinds = "annotations", "annotations_instance"
    return [root / kind / _FOLDERS[split] / f"{name}.png" for kind in kinds]


def write(root: Path, split: str, name: str, seed: int) -> None:
    """Write a sample whose instances cover some stuff and leave some things uncovered."""
    random = np.random.default_rng(seed)
    picture(image(root, split, name), random)
    labels = blocks(random, (0, *STUFF, *THINGS))
    corner = labels[:2, :5]
    corner[np.isin(corner, [*THINGS])] = STUFF[0]
    red, green = np.zeros((2, *labels.shape), int)
    number = blocks(random, range(5), cell=12)  # up to 4 instances per class, 0 = none
    for n, (label, thing) in enumerate(THINGS.items()):
        inside = (labels == label) & (number > 0)
        red[inside] = thing
        green[inside] = 10 * n + number[inside]
    red[:2, :5], green[:2, :5] = 4, 200  # a person on pixels whose semantic label is stuff or none
    semantic, instance = maps(root, split, name)
    save(semantic, labels.astype(np.uint8))
    save(instance, np.stack([red, green, 0 * red], -1).astype(np.uint8))
