"""From the last prediction of one image to panoptic, instance and semantic segmentations.

The procedures of Mask2Former's (arXiv 2112.01527) evaluation. Masks become full size only for the
queries that matter, a few rows at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.masked_decoder import Predictions
from model.settings import Settings, setting

STRIDE = 4  # of mask features
TILE = {"cpu": 1 << 19, "cuda": 1 << 25}  # mask logits at full size at a time: fits a CPU's cache


@dataclass
class SegmentSettings(Settings):
    """Thresholds of the panoptic merge, and the number of instances per image."""

    object_threshold: float = setting(
        0.8,
        "Least class probability of a query that the panoptic merge keeps.",
        at_least=0,
        at_most=1,
    )
    overlap_threshold: float = setting(
        0.8,
        "Least share of its mask that a query must win to become a panoptic segment.",
        at_least=0,
        at_most=1,
    )
    detections: int = setting(100, "Number of instances reported per image.", at_least=1)


class ImagePrediction(NamedTuple):
    """The last prediction for one image, and its sizes (height, width) in pixels."""

    class_logits: Tensor  # [Q, K + 1]
    mask_embeddings: Tensor  # [Q, C]
    mask_features: Tensor  # [C, h, w], stride 4 of the padded network input
    valid_size: tuple[int, int]  # network input without its padding (right and bottom)
    output_size: tuple[int, int]  # original image

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        image: int,
        valid_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> "ImagePrediction":
        """Image number `image` of a batch, in float32."""
        return cls(
            predictions.class_logits[-1, image].float(),
            predictions.mask_embeddings[-1, image].float(),
            predictions.mask_features[image].float(),
            valid_size,
            output_size,
        )

    def tiles(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Mask logits of `queries` [n] at output size, by bands of rows: (rows, [n, ≤ rows, W]).

        Bilinear to the padded input, crop to the valid part, bilinear to the output: both steps are
        linear and separable, so that a band needs but a few rows of the small logits.
        """
        rows, columns = self.valid_size
        height, width = self.output_size
        logits = self.mask_embeddings[queries] @ self.mask_features.flatten(1)
        logits = logits.unflatten(1, self.mask_features.shape[1:])  # [n, h, w]
        vertical = _resizing(logits.shape[1], rows, height, logits.dtype)  # on the host
        size = TILE["cpu" if logits.device.type == "cpu" else "cuda"]
        step = min(height, max(8, size // max(1, len(queries) * width)))
        for start in range(0, height, step):
            band = vertical[start : start + step]
            used = band.any(0).nonzero()[:, 0].tolist()
            source = slice(used[0], used[-1] + 1)
            wide = F.interpolate(logits[:, source], STRIDE * logits.shape[2], mode="linear")
            wide = wide[..., :columns]
            if columns != width:
                wide = F.interpolate(wide, width, mode="linear")
            weights = band[:, source].to(wide.device, non_blocking=True)
            yield slice(start, start + len(band)), weights @ wide


def _resizing(small: int, valid: int, output: int, dtype: torch.dtype) -> Tensor:
    """Matrix [output, small] of: linear by STRIDE, the first `valid`, linear to `output`."""
    impulses = torch.eye(small, dtype=dtype)[None]  # of one mask row each
    large = F.interpolate(impulses, STRIDE * small, mode="linear")[..., :valid]
    return F.interpolate(large, output, mode="linear")[0].T.contiguous()


@torch.no_grad()
def panoptic(
    prediction: ImagePrediction, things: Sequence[bool], settings: SegmentSettings
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Non-overlapping segments: map [H, W] int32 of ids (0 = none) and what each id is.

    Confident queries compete for pixels by score · probability. A query keeps what it wins with
    probability >= 0.5, unless it lost too much of its mask to others; nobody inherits the rest.
    Stuff of one category is one segment, with the score of its first query.

    Args:
        things: for every category, whether it is a thing.

    Returns:
        The map and, in order of ids, dicts of id, category, isthing, score.
    """
    scores, labels = prediction.class_logits.softmax(1).max(1)
    confident = (labels != len(things)) & (scores > settings.object_threshold)
    kept = confident.nonzero()[:, 0]
    if not len(kept):
        return scores.new_zeros(prediction.output_size, dtype=torch.int32), []
    scores, labels = scores[kept], labels[kept]
    claims, areas = _compete(prediction, kept, scores)

    ids = [0] * len(kept)  # segment of each kept query, 0 = rejected
    segments: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}
    described = zip(labels.tolist(), scores.tolist(), areas.tolist(), strict=True)
    for i, (category, score, (won, own, final)) in enumerate(described):
        if min(won, own, final) == 0 or won / own < settings.overlap_threshold:
            continue
        if category in stuff:
            ids[i] = stuff[category]
            continue
        ids[i] = len(segments) + 1
        if not things[category]:
            stuff[category] = ids[i]
        segments.append(
            {
                "id": ids[i],
                "category": category,
                "isthing": bool(things[category]),
                "score": score,
            }
        )
    table = torch.tensor([(0, i) for i in ids], dtype=torch.int32, device=claims.device)
    return table.flatten().index_select(0, claims.flatten()).view_as(claims), segments


def _compete(prediction: ImagePrediction, kept: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Winner of each pixel, as 2 · winner + (its probability >= 0.5) [H, W] i32, and areas [n, 3].

    Areas of each kept query: pixels won, pixels of probability >= 0.5, and both at once.
    """
    n = len(kept)
    claims = torch.empty(prediction.output_size, dtype=torch.int32, device=scores.device)
    own = torch.zeros(n, dtype=torch.long, device=scores.device)
    for rows, logits in prediction.tiles(kept):
        probability = logits.sigmoid_()
        winner = _first_largest(probability * scores[:, None, None])
        inside = probability.gather(0, winner[None])[0] >= 0.5
        claims[rows] = 2 * winner + inside
        own += _count(torch.ge(probability, 0.5, out=probability))
    lost, final = torch.bincount(claims.flatten(), minlength=2 * n).view(n, 2).unbind(1)
    return claims, torch.stack((lost + final, own, final), dim=1)


def _first_largest(x: Tensor) -> Tensor:
    """Where in n the largest is, the first of equals: [T, W] i64 of [n, T, W], overwritten.

    On a CPU `max` with indices takes three times as long.
    """
    index = torch.arange(len(x), dtype=x.dtype, device=x.device)[:, None, None]
    smaller = x.ne_(x.amax(0))
    return torch.add(index, smaller, alpha=len(x), out=smaller).amin(0).long()


def _count(flags: Tensor) -> Tensor:
    """Ones in each [T, W] of 0 and 1: [n] i64, by rows, whose sums floats hold exactly."""
    return flags.sum(2).sum(1, dtype=torch.float64).long()


@torch.no_grad()
def instances(
    prediction: ImagePrediction, things: Sequence[bool], settings: SegmentSettings
) -> dict[str, Any]:
    """Scored, possibly overlapping masks of things.

    The best `detections` (query, category) pairs, of which those of things remain; score = category
    probability · mean probability inside the mask (logit > 0).

    Returns:
        scores [n] float, categories [n] i64, masks: n times [H, W] bool; those of one query share
        their memory.
    """
    probability = prediction.class_logits.softmax(1)[:, :-1]  # [Q, K]
    top = probability.flatten().topk(min(settings.detections, probability.numel()), sorted=False)
    query, category = top.indices // len(things), top.indices % len(things)
    kept = torch.tensor(things, device=category.device)[category]
    scores, query, category = top.values[kept], query[kept], category[kept]

    unique, position = query.unique(return_inverse=True)  # a query may appear with several classes
    masks = probability.new_empty((len(unique), *prediction.output_size), dtype=torch.bool)
    total = probability.new_zeros(2, len(unique))  # Σ probability inside, and pixels
    for rows, logits in prediction.tiles(unique):
        inside = torch.gt(logits, 0, out=torch.empty_like(logits))
        masks[:, rows] = inside
        total[1] += inside.sum((1, 2))
        total[0] += logits.sigmoid_().mul_(inside).sum((1, 2))
    quality = total[0] / (total[1] + 1e-6)
    return {
        "scores": scores * quality[position],
        "categories": category,
        "masks": [masks[i] for i in position.tolist()],
    }


@torch.no_grad()
def semantic(prediction: ImagePrediction) -> Tensor:
    """Most likely category of every pixel, [H, W] i64: argmax_c Σ_q p(c | q) · mask probability."""
    probability = prediction.class_logits.softmax(1)[:, :-1]  # [Q, K]
    queries = torch.arange(len(probability), device=probability.device)
    best = torch.empty(prediction.output_size, dtype=torch.long, device=queries.device)
    for rows, logits in prediction.tiles(queries):
        scores = torch.tensordot(probability.T, logits.sigmoid_(), 1)  # [K, T, W]
        best[rows] = _first_largest(scores)
    return best
