"""Run the network on the tiles of one image for panoptic, instance, and semantic results."""

from collections.abc import Sequence

import numpy as np
import torch

from jobs.tiled.grid import Tiling
from jobs.tiled.merge import InstanceTiles, PanopticTiles, SemanticTiles
from model import segment
from model.network import Network
from pipeline.score.inference import (
    InferenceSettings,
    Result,
    highest_scores,
    infer,
    predict_image,
)


@torch.inference_mode()
def infer_tiled(
    model: Network,
    image: np.ndarray,
    settings: InferenceSettings,
    things: Sequence[bool],
    device: torch.device,
    tiling: Tiling,
) -> Result:
    """Return the results of one image from its tiles; an image in one tile gives those of `infer`.

    Besides the image and the integer maps, memory holds the prediction for one tile, the run
    lengths of masks, and the scores of classes in the rows that two rows of tiles share.

    Args:
        model: The network.
        image: RGB `uint8 [H, W, 3]`.
        settings: The sizes to which a tile is resized, and the thresholds; the number of instances
            is that of a tile.
        things: For each class, whether it is a thing.
        device: The device of the network.
        tiling: The sizes of tiles.
    """
    size = image.shape[:2]
    tiles = tiling.tiles(*size)
    if len(tiles) == 1:
        return infer(model, image, settings, things, device)
    panoptic, instances, semantic = PanopticTiles(size), InstanceTiles(size), SemanticTiles(size)
    highest = np.zeros(len(things), np.float32)
    for tile in tiles:
        prediction = predict_image(model, image[tile.index], settings, device)
        ids, segments = segment.panoptic(prediction, things, settings.segment)
        panoptic.add(tile, ids.cpu().numpy(), segments)
        instances.add(tile, segment.instances(prediction, things, settings.segment))
        semantic.add(tile, prediction)
        highest = np.maximum(highest, highest_scores(prediction).cpu().numpy())
    ids, segments = panoptic.finish()
    scores, categories, masks = instances.finish()
    return Result(ids, segments, scores, categories, masks, semantic.finish(), highest)
