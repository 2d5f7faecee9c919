"""The comparison of an exported program with the network and the project's own segmentations."""

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import segment
from model.mask2former import Predictions, normalize
from model.portable import Segmenter, smallest_decision
from model.segment import ImagePrediction
from pipeline.data.augment.resize import resize
from shards.errors import Failed

# Number of images, height, and width of each comparison.
SHAPES = ((2, 64, 96), (1, 100, 70), (2, 96, 160))
LOGITS = 1e-4  # most difference of a logit or score, relative to the largest logit if it exceeds 1
IOU = 0.999  # least intersection over union of the masks of all queries
EQUAL = 0.999  # least share of pixels with the same segment, class, or masks
# A float32 sum of a few hundred terms is off by up to 1e-5. Attention masks that hang on less are
# compared in another image.
UNDECIDED = 2e-5
TRIES = 50

Run = Callable[[np.ndarray], Sequence[Any]]


@torch.no_grad()
def compare(run: Run, segmenter: Segmenter, photos: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compare a program with the network and `model.segment`.

    Args:
        run: The program: pixels uint8 [B, 3, H, W] to the outputs of a `Segmenter`.
        segmenter: What the program was exported from.
        photos: Images uint8 [H, W, 3] to compare on; noise if there are none.

    Returns:
        The worst differences, the limits, the versions, and one row for each comparison.

    Raises:
        Failed: A limit is exceeded.
    """
    rows = [_row(run, segmenter, photos, shape) for shape in SHAPES]
    report = {
        "task": segmenter.task,
        "images": "photographs" if photos else "noise",
        "logits_difference": max(row["logits_difference"] for row in rows),
        "mask_iou": min(row["mask_iou"] for row in rows),
        "equal_pixels": min(row["equal_pixels"] for row in rows),
        "limits": {"logits_difference": LOGITS, "mask_iou": IOU, "equal_pixels": EQUAL},
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
        | {"machine": platform.machine()},
        "comparisons": rows,
    }
    if (
        not report["logits_difference"] <= LOGITS
        or report["mask_iou"] < IOU
        or report["equal_pixels"] < EQUAL
    ):
        raise Failed(
            f"the exported program differs from the network: {sentence(report)}; nothing is written"
        )
    return report


def sentence(report: Mapping[str, Any]) -> str:
    """Return the result of a comparison in words."""
    return (
        f"logits within {report['logits_difference']:.1e} (limit {LOGITS:g}), mask IoU "
        f"{report['mask_iou']:.5f} (limit {IOU}), {report['equal_pixels']:.3%} of pixels equal "
        f"(limit {EQUAL:.1%})"
    )


def _row(
    run: Run, segmenter: Segmenter, photos: Sequence[np.ndarray], shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Compare the results of one batch of images, whose attention masks are decided."""
    random = np.random.default_rng(0)
    for _ in range(TRIES):
        pixels = _images(photos, shape, random)
        images = segmenter.padded(normalize(torch.from_numpy(pixels)))
        predictions = segmenter.model(images)
        decision = smallest_decision(predictions)
        if decision > UNDECIDED:
            break
    *found, class_logits, mask_logits = (torch.from_numpy(np.asarray(x)) for x in run(pixels))
    wanted_masks = segmenter.mask_logits(predictions)
    inside, wanted = mask_logits > 0, wanted_masks > 0
    union = int((inside | wanted).sum())
    equal, segments = _equal(segmenter, predictions, shape[1:], found)
    return {
        "shape": [shape[0], 3, *shape[1:]],
        "logits_difference": max(
            _difference(class_logits, predictions.class_logits[-1]),
            _difference(mask_logits, wanted_masks),
        ),
        "mask_iou": int((inside & wanted).sum()) / union if union else 1.0,
        "equal_pixels": equal,
        "segments": segments,
        "smallest_attention_logit": decision,
    }


def _images(
    photos: Sequence[np.ndarray], shape: tuple[int, int, int], random: np.random.Generator
) -> np.ndarray:
    """Return uint8 [B, 3, H, W]: parts of photographs, or noise with edges of all sizes."""
    count, height, width = shape
    if not photos:
        coarse = torch.from_numpy(random.random((count, 3, height // 16 + 1, width // 16 + 1)))
        smooth = F.interpolate(coarse, (height, width), mode="bicubic")
        noise = 0.2 * torch.from_numpy(random.random((count, 3, height, width))) - 0.1
        return ((smooth + noise).clamp(0, 1) * 255).byte().numpy()
    images = []
    for photo in (photos[i] for i in random.integers(len(photos), size=count)):
        top, left = (int(random.integers(side // 4 + 1)) for side in photo.shape[:2])
        images.append(resize(np.ascontiguousarray(photo[top:, left:]), height, width))
    return np.stack(images).transpose(0, 3, 1, 2).copy()


def _equal(
    segmenter: Segmenter, predictions: Predictions, size: tuple[int, int], found: list[Tensor]
) -> tuple[float, int]:
    """Return the share of pixels with the result of `model.segment`, and the number of segments.

    A segment, or an instance, of another class or score has no equal pixel.
    """
    things, settings = segmenter.is_thing[:-1].tolist(), segmenter.settings
    shares, segments = [], 0
    for i in range(predictions.class_logits.shape[1]):
        prediction = ImagePrediction.of(predictions, i, size, size)
        own = [x[i] for x in found]
        if segmenter.task == "semantic":
            shares.append((own[0] == segment.semantic(prediction)).float().mean())
        elif segmenter.task == "panoptic":
            ids, described = segment.panoptic(prediction, things, settings)
            classes = torch.tensor([row["category"] for row in described], dtype=torch.int32)
            scores = torch.tensor([row["score"] for row in described])
            same = _same_rows(own[1:], classes, scores)
            same = torch.cat((torch.ones(1, dtype=torch.bool), same))
            shares.append(((own[0] == ids) & same[ids]).float().mean())
            segments += len(described)
        else:
            wanted = segment.instances(prediction, things, settings)
            order = wanted["scores"].argsort(descending=True)
            masks = torch.stack([wanted["masks"][j] for j in order.tolist()])
            same = _same_rows(own[1:], wanted["categories"][order], wanted["scores"][order])
            equal = (own[0][: len(masks)] == masks) & same[:, None, None]
            shares.append(equal.float().mean())
            segments += len(masks)
    return float(torch.stack(shares).mean()), segments


def _same_rows(found: list[Tensor], classes: Tensor, scores: Tensor) -> Tensor:
    """Return which rows of classes and scores the padded results repeat, bool [n]."""
    padded_classes, padded_scores = found
    count = len(classes)
    if (padded_classes[count:] >= 0).any():
        return torch.zeros(count, dtype=torch.bool)
    return (padded_classes[:count] == classes) & ((padded_scores[:count] - scores).abs() < LOGITS)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().amax() / wanted.abs().amax().clamp(min=1))
