"""Generate Cityscapes sets for the tests."""

from pathlib import Path

import numpy as np

from tests.shards.raw_maps import blocks, picture, save

SOURCE = "cityscapes"
PREFIX = "ulm/"  # the folder of an image within its split
STUFF = (7, 11, 23)  # road, building, sky
VOID = (0, 4, 14, 29)  # unlabeled, static, guard rail, caravan
THINGS = (24, 26, 33)  # person, car, bicycle


def image(root: Path, split: str, name: str) -> Path:
    """Return the path of an image."""
    return root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png"


def maps(root: Path, split: str, name: str) -> list[Path]:
    """Return the paths of the label map and of the instance map."""
    folder = root / "gtFine" / split / "ulm"
    return [folder / f"{name}_gtFine_{kind}.png" for kind in ("labelIds", "instanceIds")]


def write(root: Path, split: str, name: str, seed: int) -> None:
    """Write a sample with groups of things, and instances of a class that is not scored."""
    random = np.random.default_rng(seed)
    picture(image(root, split, name), random)
    labels = blocks(random, (*STUFF, *VOID, *THINGS))
    number = blocks(random, range(4), cell=12)  # 3 = a group
    single = np.isin(labels, (*THINGS, 29)) & (number < 3)
    instances = np.where(single, 1000 * labels + number, labels)
    for path, values, kind in zip(
        maps(root, split, name), (labels, instances), (np.uint8, np.uint16), strict=True
    ):
        save(path, values.astype(kind))
