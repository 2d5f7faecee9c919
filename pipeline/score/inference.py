"""Run the network on one image of any size for panoptic, instance, and semantic results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import segment
from model.mask2former import Mask2Former, normalize
from model.segment import ImagePrediction
from pipeline.data.augment.resize import resize, shortest_edge_size
from pipeline.settings import InferenceSettings


@dataclass(frozen=True)
class Result:
    """The results of one image at the size `[H, W]` of the image.

    Attributes:
        panoptic: `int32 [H, W]`, the id of each pixel's segment, 0 = void.
        segments: The `id`, `category`, `isthing`, and `score` of each segment.
        scores: `float32 [N]`, the score of each instance.
        categories: `int64 [N]`, the class of each instance.
        masks: The mask of each instance, `bool [H, W]`.
        semantic: `int64 [H, W]`, the class of each pixel.
    """

    panoptic: np.ndarray
    segments: list[dict[str, Any]]
    scores: np.ndarray
    categories: np.ndarray
    masks: list[np.ndarray]
    semantic: np.ndarray


def network_input(image: np.ndarray, settings: InferenceSettings) -> tuple[Tensor, tuple[int, int]]:
    """Resize, normalize, and pad an image.

    Args:
        image: RGB `uint8 [H, W, 3]`.
        settings: The sizes.

    Returns:
        `float32 [1, 3, h, w]`, padded with 0, and the height and width without the padding.
    """
    rows, columns, _ = image.shape
    height, width = shortest_edge_size(rows, columns, settings.short, settings.long)
    pixels = torch.from_numpy(resize(image, height, width)).permute(2, 0, 1)
    divisor = settings.size_divisor
    padding = (0, -width % divisor, 0, -height % divisor)
    return torch.nn.functional.pad(normalize(pixels), padding)[None], (height, width)


@torch.inference_mode()
def infer(
    model: Mask2Former,
    image: np.ndarray,
    settings: InferenceSettings,
    things: Sequence[bool],
    device: torch.device,
) -> Result:
    """Return the results of one image from the last decoder layer, computed in float32.

    Args:
        model: The network.
        image: RGB `uint8 [H, W, 3]`.
        settings: The sizes and thresholds.
        things: For each class, whether it is a thing.
        device: The device of the network.
    """
    pixels, valid = network_input(image, settings)
    with torch.autocast(device.type, enabled=False):
        predictions = model(pixels.to(device))
    prediction = ImagePrediction.of(predictions, 0, valid, image.shape[:2])
    panoptic, segments = segment.panoptic(prediction, things, settings.segment)
    instances = segment.instances(prediction, things, settings.segment)
    return Result(
        panoptic=panoptic.cpu().numpy(),
        segments=segments,
        scores=instances["scores"].cpu().numpy(),
        categories=instances["categories"].cpu().numpy(),
        masks=[mask.cpu().numpy() for mask in instances["masks"]],
        semantic=segment.semantic(prediction).cpu().numpy(),
    )
