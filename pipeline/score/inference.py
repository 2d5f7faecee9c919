"""Run the network on one image of any size for panoptic, instance, and semantic results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import segment
from model.mask2former import normalize
from model.network import Network
from model.network_settings import SegmentSettings
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
        semantic: Integers `[H, W]`, the class of each pixel.
        highest_scores: `float32 [K]`, for each class, the highest score of a query that predicts
            it, before any threshold; 0 if none does.
    """

    panoptic: np.ndarray
    segments: list[dict[str, Any]]
    scores: np.ndarray
    categories: np.ndarray
    masks: Sequence[np.ndarray]
    semantic: np.ndarray
    highest_scores: np.ndarray


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
def predict_image(
    model: Network, image: np.ndarray, settings: InferenceSettings, device: torch.device
) -> ImagePrediction:
    """Return the prediction of the last decoder layer for one image, computed in float32.

    Args:
        model: The network.
        image: RGB `uint8 [H, W, 3]`.
        settings: The sizes.
        device: The device of the network.
    """
    pixels, valid = network_input(image, settings)
    with torch.autocast(device.type, enabled=False):
        predictions = model(pixels.to(device))
    return ImagePrediction.of(predictions, 0, valid, image.shape[:2])


@torch.inference_mode()
def infer(
    model: Network,
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
    prediction = predict_image(model, image, settings, device)
    panoptic, segments = segment.panoptic(prediction, things, settings.segment)
    instances = segment.instances(prediction, things, settings.segment)
    return Result(
        panoptic=panoptic.cpu().numpy(),
        segments=segments,
        scores=instances["scores"].cpu().numpy(),
        categories=instances["categories"].cpu().numpy(),
        masks=[mask.cpu().numpy() for mask in instances["masks"]],
        semantic=segment.semantic(prediction).cpu().numpy(),
        highest_scores=highest_scores(prediction).cpu().numpy(),
    )


def why_empty(highest_score: float, settings: SegmentSettings) -> str:
    """Return why an image has no segment, and which threshold would give it one."""
    threshold = settings.object_threshold
    if highest_score == 0:
        return "every query predicts that there is no object; train longer"
    if highest_score <= threshold:
        return (
            f"the highest score is {highest_score:.4g}, and the threshold is {threshold:g}; "
            f"a threshold of {_just_below(highest_score):g} would let it pass"
        )
    return (
        f"the queries above the threshold of {threshold:g} win too few pixels of their masks "
        f"(evaluation.segment.overlap_threshold={settings.overlap_threshold:g})"
    )


def highest_scores(prediction: ImagePrediction) -> Tensor:
    """Return the `highest_scores` of a `Result`."""
    scores, labels = prediction.class_logits.softmax(1).max(1)
    highest = scores.new_zeros(prediction.class_logits.shape[1])
    return highest.scatter_reduce(0, labels, scores, "amax")[:-1]


def _just_below(score: float) -> float:
    """Return the largest number of two significant digits that is less than a score above 0."""
    unit = 10.0 ** (math.floor(math.log10(score)) - 1)
    return (math.ceil(score / unit - 1e-6) - 1) * unit
