"""Raw ADE20K sets of generated content."""

from pathlib import Path

import numpy as np

from tests.shards.raw_maps import blocks, picture, save

SOURCE = "ade20k"
PREFIX = ""  # of an image's name in its split
_FOLDERS = {"train": "training", "val": "validation"}
STUFF = (1, 3, 4, 146)  # wall, sky, floor, shower
THINGS = {8: 1, 13: 4, 150: 100}  # bed, person, flag: which of the 100 things


def image(root: Path, split: str, name: str) -> Path:
    return root / "images" / _FOLDERS[split] / f"{name}.jpg"


def maps(root: Path, split: str, name: str) -> list[Path]:
    """The semantic map, then that of instances."""
    kinds = "annotations", "annotations_instance"
    return [root / kind / _FOLDERS[split] / f"{name}.png" for kind in kinds]


def write(root: Path, split: str, name: str, seed: int) -> None:
    """One sample: instances cover most of the things, some stuff, and leave some things bare."""
    random = np.random.default_rng(seed)
    picture(image(root, split, name), random)
    labels = blocks(random, (0, *STUFF, *THINGS))
    corner = labels[:2, :5]
    corner[np.isin(corner, [*THINGS])] = STUFF[0]
    red, green = np.zeros((2, *labels.shape), int)
    number = blocks(random, range(5), cell=12)  # up to 4 instances a class, 0 = none
    for n, (label, thing) in enumerate(THINGS.items()):
        inside = (labels == label) & (number > 0)
        red[inside] = thing
        green[inside] = 10 * n + number[inside]
    red[:2, :5], green[:2, :5] = 4, 200  # a person, where the semantic map says stuff or none
    semantic, instance = maps(root, split, name)
    save(semantic, labels.astype(np.uint8))
    save(instance, np.stack([red, green, 0 * red], -1).astype(np.uint8))
