"""One picture of any size through the network, to panoptic, instance and semantic results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import segment
from model.mask2former import Mask2Former, normalize
from model.segment import ImagePrediction
from pipeline.data.augment.resize import resize
from pipeline.settings import InferenceSettings


@dataclass(frozen=True)
class Result:
    """The results of one image at its own size `[H, W]`."""

    panoptic: np.ndarray  # i32, 0 = void
    segments: list[dict[str, Any]]  # id, category, isthing, score
    scores: np.ndarray  # [n] of instances
    categories: np.ndarray  # [n]
    masks: list[np.ndarray]  # bool [H, W], n of them
    semantic: np.ndarray  # i64, class of every pixel


def network_input(image: np.ndarray, settings: InferenceSettings) -> tuple[Tensor, tuple[int, int]]:
    """Image u8 [H,W,3] -> normalized [1,3,h,w] padded with 0, and the (h, w) not padded."""
    sides = np.array(image.shape[:2])
    scale = min(settings.short / sides.min(), settings.long / sides.max())
    height, width = (max(1, int(side * scale + 0.5)) for side in sides)
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
    """All three results of one RGB image u8 [H,W,3], from the last prediction, in fp32."""
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
