"""A sheet of pictures: image, truth, and prediction side by side."""

from pathlib import Path

import cv2
import numpy as np
import torch

from model.network import Network
from pipeline.data.store import Store
from pipeline.pictures.regions import predicted_regions, true_regions
from pipeline.pictures.render import enlarge, grid, overlay, shrink
from pipeline.score.inference import InferenceSettings, infer
from shards.files import whole_file
from shards.format.images import image_of

MAX_SIDE = 1024  # pixels; 24 pictures of phones at full size would take gigabytes


def sheet(
    model: Network,
    store: Store,
    settings: InferenceSettings,
    device: torch.device,
    count: int,
) -> np.ndarray:
    """Draw the first `count` samples of a set with panoptic truth, two per row.

    Images whose longer side exceeds MAX_SIDE are shrunk to it.

    Returns:
        RGB `uint8 [H, W, 3]`.
    """
    taxonomy = store.manifest.taxonomy
    triples = []
    for number in range(min(count, len(store))):
        sample = store.load(number)
        image = image_of(sample)
        result = infer(model, image, settings, taxonomy.things, device)
        triples.append([
            enlarge(shrink(image, result.panoptic, MAX_SIDE)[0]),
            *(
                overlay(*shrink(image, ids, MAX_SIDE), regions, taxonomy)
                for ids, regions in (true_regions(sample)["panoptic"], predicted_regions(result))
            ),
        ])  # fmt: skip
    return grid(["image", "truth", "prediction"], triples, per_row=2)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture, and create its folder if necessary.

    Args:
        path: The PNG.
        picture: RGB `uint8 [H, W, 3]`, or one channel, `uint8` or `uint16 [H, W]`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".png", colors)[1]
    with whole_file(path) as file:
        file.write(encoded.tobytes())
