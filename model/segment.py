"""Panoptic, instance, and semantic segmentations of one image from the last layer's prediction.

The procedures are those of the evaluation of Mask2Former (arXiv 2112.01527). Only the masks of
queries that can appear in the result are resized to the image, one band of rows at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import REFERENCE, implementation
from model.masked_decoder import Predictions
from model.network_settings import SegmentSettings

STRIDE = 4  # of the mask features
# Number of mask logits, at the image's size, in one band of rows: 2 MiB of float32 stay in a CPU's
# cache, 128 MiB keep a GPU busy. The panoptic merge of a photograph of 3000x4000 pixels with
# 20 queries peaks at 624 MiB (transformers, which resizes all masks at once: 1,835 MiB).
BAND = {"cpu": 1 << 19, "cuda": 1 << 25}


class ImagePrediction(NamedTuple):
    """The last layer's prediction for one image, and its sizes (height, width) in pixels."""

    class_logits: Tensor  # [Q, K + 1]
    mask_embeddings: Tensor  # [Q, C]
    mask_features: Tensor  # [C, h, w], stride 4 of the padded network input
    valid_size: tuple[int, int]  # network input without its padding on the right and bottom
    output_size: tuple[int, int]  # original image

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        image: int,
        valid_size: tuple[int, int],
        output_size: tuple[int, int],
    ) -> "ImagePrediction":
        """Return the prediction for image number `image` of a batch, in float32."""
        return cls(
            predictions.class_logits[-1, image].float(),
            predictions.mask_embeddings[-1, image].float(),
            predictions.mask_features[image].float(),
            valid_size,
            output_size,
        )

    def bands(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the mask logits of some queries at output size, in bands of rows.

        The logits are resized bilinearly to the padded input, cropped to its valid part, and
        resized bilinearly to the output. Every step is linear and treats height and width
        separately, so all three steps multiply a column by one matrix, and a band needs only the
        rows of the small logits whose weights in the band's rows of that matrix are not zero.

        Args:
            queries: int64 [n].

        Yields:
            The rows of the band, and its logits [n, number of rows, W].
        """
        rows, columns = self.valid_size
        height, width = self.output_size
        logits = self.mask_embeddings[queries] @ self.mask_features.flatten(1)
        logits = logits.unflatten(1, self.mask_features.shape[1:])  # [n, h, w]
        if implementation("resize_masks", logits.device) == REFERENCE:
            yield slice(0, height), self._resized(logits)
            return
        vertical = _row_weights(logits.shape[1], rows, height, logits.dtype)  # on the host
        size = BAND["cpu" if logits.device.type == "cpu" else "cuda"]
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

    def _resized(self, logits: Tensor) -> Tensor:
        """Return logits [n, h, w] resized to the output as a whole; the joined bands equal it."""
        rows, columns = self.valid_size
        padded = [STRIDE * side for side in logits.shape[1:]]
        large = F.interpolate(logits[None], padded, mode="bilinear")[..., :rows, :columns]
        return F.interpolate(large, self.output_size, mode="bilinear")[0]


def _row_weights(small: int, valid: int, output: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix [output, small] that resizes a column of logits.

    Its column j is the resized unit vector j.
    """
    impulses = torch.eye(small, dtype=dtype)[None]
    large = F.interpolate(impulses, STRIDE * small, mode="linear")[..., :valid]
    return F.interpolate(large, output, mode="linear")[0].T.contiguous()


@torch.no_grad()
def panoptic(
    prediction: ImagePrediction, things: Sequence[bool], settings: SegmentSettings
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return segments that do not overlap.

    Every pixel goes to the confident query with the largest score times mask probability. A query
    keeps the pixels that it wins with a probability of at least 0.5, unless it lost too much of its
    mask to other queries; the pixels of a rejected query stay empty. All stuff of one category is
    one segment, with the score of its first query.

    Args:
        prediction: The prediction for the image.
        things: For every category, whether it is a thing.
        settings: Thresholds.

    Returns:
        A map int32 [H, W] of segment ids, 0 = none, and for every segment, in the order of ids, a
        dict of id, category, isthing, score.
    """
    scores, labels = prediction.class_logits.softmax(1).max(1)
    confident = (labels != len(things)) & (scores > settings.object_threshold)
    kept = confident.nonzero()[:, 0]
    if not len(kept):
        return scores.new_zeros(prediction.output_size, dtype=torch.int32), []
    scores, labels = scores[kept], labels[kept]
    claims, areas = _compete(prediction, kept, scores)

    ids, segments = _merge(labels, scores, areas, things, settings.overlap_threshold)
    table = torch.tensor([(0, i) for i in ids], dtype=torch.int32, device=claims.device)
    return table.flatten().index_select(0, claims.flatten()).view_as(claims), segments


def _compete(prediction: ImagePrediction, kept: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Find the kept query that wins each pixel, and count the pixels of each query.

    Returns:
        claims: int32 [H, W], 2 · winner + (whether the winner's probability is at least 0.5).
        areas: int64 [n, 3] for each kept query: pixels won, pixels of probability >= 0.5, and
            pixels that are both.
    """
    n = len(kept)
    claims = torch.empty(prediction.output_size, dtype=torch.int32, device=scores.device)
    own = torch.zeros(n, dtype=torch.long, device=scores.device)
    for rows, logits in prediction.bands(kept):
        probability = logits.sigmoid_()
        winner = first_largest(probability * scores[:, None, None])
        inside = probability.gather(0, winner[None])[0] >= 0.5
        claims[rows] = 2 * winner + inside
        own += _count(torch.ge(probability, 0.5, out=probability))
    lost, final = torch.bincount(claims.flatten(), minlength=2 * n).view(n, 2).unbind(1)
    return claims, torch.stack((lost + final, own, final), dim=1)


def _merge(
    labels: Tensor, scores: Tensor, areas: Tensor, things: Sequence[bool], least_share: float
) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the segment of each kept query (0 = rejected), and the description of each segment."""
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}  # category -> segment
    described = zip(labels.tolist(), scores.tolist(), areas.tolist(), strict=True)
    for category, score, (won, own, final) in described:
        if min(won, own, final) == 0 or won / own < least_share:
            ids.append(0)
            continue
        if category in stuff:
            ids.append(stuff[category])
            continue
        number = len(segments) + 1
        ids.append(number)
        if not things[category]:
            stuff[category] = number
        segments.append(
            {"id": number, "category": category, "isthing": bool(things[category]), "score": score}
        )
    return ids, segments


def first_largest(x: Tensor) -> Tensor:
    """Return, for each pixel of [n, T, W], the first index of the largest value, int64 [T, W].

    The tensor `x` may be overwritten. On a CPU `max` with indices takes two to three times as long,
    because it carries an index along with every value. Here every index is raised by n unless its
    value is the maximum, so that the smallest index left is that of the first maximum.
    """
    if implementation("first_largest", x.device) == REFERENCE:
        return x.max(0).indices
    index = torch.arange(len(x), dtype=x.dtype, device=x.device)[:, None, None]
    smaller = x.ne_(x.amax(0))
    return torch.add(index, smaller, alpha=len(x), out=smaller).amin(0).long()


def _count(flags: Tensor) -> Tensor:
    """Return the number of ones int64 [n] in flags float [n, T, W].

    Rows are summed first because a float holds the sum of one row exactly.
    """
    return flags.sum(2).sum(1, dtype=torch.float64).long()


@torch.no_grad()
def instances(
    prediction: ImagePrediction, things: Sequence[bool], settings: SegmentSettings
) -> dict[str, Any]:
    """Return scored masks of things, which may overlap.

    The best `settings.detections` pairs of a query and a category, stuff included, are taken, and
    those of stuff are then dropped. The score is the probability of the category times the mean
    probability inside the mask, which is where the logit is positive.

    Args:
        prediction: The prediction for the image.
        things: For every category, whether it is a thing.
        settings: The number of detections.

    Returns:
        scores: float [n]; categories: int64 [n]; masks: a list of n bool [H, W], where masks of the
        same query share their memory.
    """
    probability = prediction.class_logits.softmax(1)[:, :-1]  # [Q, K]
    top = probability.flatten().topk(min(settings.detections, probability.numel()), sorted=False)
    query, category = top.indices // len(things), top.indices % len(things)
    kept = torch.tensor(things, device=category.device)[category]
    scores, query, category = top.values[kept], query[kept], category[kept]

    unique, position = query.unique(return_inverse=True)  # a query may have several classes
    masks = probability.new_empty((len(unique), *prediction.output_size), dtype=torch.bool)
    total = probability.new_zeros(2, len(unique))  # sum of probability inside, and pixels
    for rows, logits in prediction.bands(unique):
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
    """Return the category with the largest of the `semantic_scores`, int64 [H, W]."""
    device = prediction.class_logits.device
    best = torch.empty(prediction.output_size, dtype=torch.long, device=device)
    for rows, scores in semantic_scores(prediction):
        best[rows] = first_largest(scores)
    return best


@torch.no_grad()
def semantic_scores(prediction: ImagePrediction) -> Iterator[tuple[slice, Tensor]]:
    """Yield bands of rows, and their scores [K, T, W]: Σ_q p(c | q) · mask probability."""
    probability = prediction.class_logits.softmax(1)[:, :-1]  # [Q, K]
    queries = torch.arange(len(probability), device=probability.device)
    for rows, logits in prediction.bands(queries):
        yield rows, torch.tensordot(probability.T, logits.sigmoid_(), 1)
