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
from model.portable import Segmenter, smallest_decisions
from model.segment import ImagePrediction
from pipeline.data.augment.resize import resize
from shards.errors import Failed

# Number of images, height, and width of each comparison. A Swin needs no padding for 224 pixels.
SHAPES = ((2, 64, 96), (1, 100, 70), (2, 96, 224))
LOGITS = 1e-4  # most difference of a logit, times the largest logit if that exceeds 1
SCORES = 1e-4  # most difference of a score
IOU = 0.999  # least intersection over union of the masks of all queries
EQUAL = 0.999  # least share of pixels with the same segment, class, or masks
# A float32 sum of a few hundred terms is off by up to 1e-5. An image is undecided if an attention
# mask hangs on less, because two correct programs then differ; another one is drawn.
UNDECIDED = 2e-5
TRIES = 50  # images drawn per comparison

Run = Callable[[np.ndarray], Sequence[Any]]


@torch.no_grad()
def compare(run: Run, segmenter: Segmenter, photos: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compare a program with the network and `model.segment`.

    Args:
        run: The program: pixels uint8 [B, 3, H, W] to the outputs of a `Segmenter`.
        segmenter: What the program was exported from.
        photos: Images uint8 [H, W, 3] to compare on; noise if there are none.

    Returns:
        The worst differences, the limits, the number of images, the versions, and one row for each
        comparison.

    Raises:
        Failed: A limit is exceeded.
    """
    rows = [_row(run, segmenter, photos, shape) for shape in SHAPES]
    worst = max(
        (row[name] for row in rows for name in ("class_logits", "mask_logits")),
        key=lambda logits: logits["difference"] / logits["limit"],
    )
    report = {
        "task": segmenter.task,
        "logits_difference": worst["difference"],
        "mask_iou": min(row["mask_iou"] for row in rows),
        "equal_pixels": min(row["equal_pixels"] for row in rows),
        "limits": {
            "logits_difference": worst["limit"],
            "logits_rule": f"{LOGITS:g} times the largest logit, which counts as at least 1",
            "largest_logit": worst["largest"],
            "score_difference": SCORES,
            "mask_iou": IOU,
            "equal_pixels": EQUAL,
        },
        "images": {
            "kind": "photographs" if photos else "noise",
            "drawn": sum(row["drawn"] for row in rows),
            "undecided": sum(row["undecided"] for row in rows),
            "compared": sum(row["shape"][0] for row in rows),
            "undecided_because": f"an attention mask hangs on a logit within {UNDECIDED:g} of 0, "
            "whose sign depends on rounding",
        },
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
        | {"machine": platform.machine()},
        "comparisons": rows,
    }
    if (
        not worst["difference"] <= worst["limit"]
        or report["mask_iou"] < IOU
        or report["equal_pixels"] < EQUAL
    ):
        raise Failed(
            f"the exported program differs from the network: {sentence(report)}; nothing is written"
        )
    return report


def sentence(report: Mapping[str, Any]) -> str:
    """Return the result of a comparison in words."""
    limits, images = report["limits"], report["images"]
    difference, limit = report["logits_difference"], limits["logits_difference"]
    return (
        f"logits within {difference:.1e} (limit {limit:.1e}, largest logit "
        f"{limits['largest_logit']:.3g}), mask IoU {report['mask_iou']:.5f} (limit {IOU}), "
        f"{report['equal_pixels']:.3%} of pixels equal (limit {EQUAL:.1%}) in "
        f"{images['compared']} images; {images['drawn']} were drawn, and {images['undecided']} of "
        f"them were undecided, because {images['undecided_because']}"
    )


def _row(
    run: Run, segmenter: Segmenter, photos: Sequence[np.ndarray], shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Compare the results of one batch of images, whose attention masks are decided."""
    pixels, decisions = _decided(segmenter, photos, shape)
    predictions = segmenter.model(segmenter.padded(normalize(torch.from_numpy(pixels))))
    *found, class_logits, mask_logits = (torch.from_numpy(np.asarray(x)) for x in run(pixels))
    wanted_masks = segmenter.mask_logits(predictions)
    inside, wanted = mask_logits > 0, wanted_masks > 0
    union = int((inside | wanted).sum())
    equal, segments = _equal(segmenter, predictions, shape[1:], found)
    return {
        "shape": [shape[0], 3, *shape[1:]],
        "drawn": len(decisions),
        "undecided": sum(decision <= UNDECIDED for decision in decisions),
        "smallest_attention_logit": min(sorted(decisions)[-shape[0] :]),
        "class_logits": _difference(class_logits, predictions.class_logits[-1]),
        "mask_logits": _difference(mask_logits, wanted_masks),
        "mask_iou": int((inside & wanted).sum()) / union if union else 1.0,
        "equal_pixels": equal,
        "segments": segments,
    }


def _decided(
    segmenter: Segmenter, photos: Sequence[np.ndarray], shape: tuple[int, int, int]
) -> tuple[np.ndarray, list[float]]:
    """Draw images until enough of them are decided, or `TRIES` were drawn.

    Returns:
        The images whose smallest attention logits are the largest, uint8 [B, 3, H, W], and the
        smallest attention logit of each image that was drawn.
    """
    random = np.random.default_rng(0)
    images: list[np.ndarray] = []
    decisions: list[float] = []
    while len(images) < TRIES and sum(x > UNDECIDED for x in decisions) < shape[0]:
        images.append(_image(photos, shape[1:], random))
        pixels = torch.from_numpy(images[-1][None])
        predictions = segmenter.model(segmenter.padded(normalize(pixels)))
        decisions.append(float(smallest_decisions(predictions, segmenter.model.mask_strides)))
    best = np.argsort(decisions)[-shape[0] :]
    return np.stack([images[int(i)] for i in best]), decisions


def _image(
    photos: Sequence[np.ndarray], size: tuple[int, int], random: np.random.Generator
) -> np.ndarray:
    """Return uint8 [3, H, W]: a part of a photograph, or noise with edges of all sizes."""
    height, width = size
    if not photos:
        coarse = torch.from_numpy(random.random((1, 3, height // 16 + 1, width // 16 + 1)))
        smooth = F.interpolate(coarse, (height, width), mode="bicubic")[0]
        noise = 0.2 * torch.from_numpy(random.random((3, height, width))) - 0.1
        return ((smooth + noise).clamp(0, 1) * 255).byte().numpy()
    photo = photos[int(random.integers(len(photos)))]
    top, left = (int(random.integers(side // 4 + 1)) for side in photo.shape[:2])
    image = resize(np.ascontiguousarray(photo[top:, left:]), height, width)
    return image.transpose(2, 0, 1).copy()


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
            if not len(order):
                shares.append((own[1] < 0).all().float())
                continue
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
    return (padded_classes[:count] == classes) & ((padded_scores[:count] - scores).abs() < SCORES)


def _difference(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Return the largest difference of logits, the largest logit, and the limit."""
    largest = float(wanted.abs().amax())
    return {
        "difference": float((found - wanted).abs().amax()),
        "largest": largest,
        "limit": LOGITS * max(1.0, largest),
    }
