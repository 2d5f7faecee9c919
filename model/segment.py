"""From the last prediction of one image to panoptic, instance and semantic segmentations.

The procedures of Mask2Former's (arXiv 2112.01527) evaluation. Masks become full size only for the
queries that matter, a few at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.masked_decoder import Predictions

STRIDE = 4  # of mask features
CHUNK = 8  # queries at full size at a time


@dataclass
class SegmentSettings:
    """Thresholds of the panoptic merge and number of instances reported per image."""

    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    detections: int = 100


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

    def full_size(self, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Mask logits of `queries` [n] at output size: (their positions, [≤ 8, H, W]) in order.

        Bilinear to the padded input, crop to the valid part, bilinear to the output.
        """
        height, width = (STRIDE * x for x in self.mask_features.shape[1:])
        rows, columns = self.valid_size
        for start in range(0, len(queries), CHUNK):
            part = slice(start, start + CHUNK)
            logits = self.mask_embeddings[queries[part]] @ self.mask_features.flatten(1)
            logits = logits.unflatten(1, self.mask_features.shape[1:])[None]
            logits = F.interpolate(logits, (height, width), mode="bilinear")
            logits = logits[..., :rows, :columns]
            if self.valid_size != self.output_size:
                logits = F.interpolate(logits, self.output_size, mode="bilinear")
            yield part, logits[0]


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
    owner, inside, areas = _compete(prediction, kept, scores)

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
    table = torch.tensor(ids, dtype=torch.int32, device=owner.device)
    return table[owner] * inside, segments


def _compete(
    prediction: ImagePrediction, kept: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Winner of each pixel [H, W], whether its probability is >= 0.5 [H, W], and areas [n, 3].

    Areas of each kept query: pixels won, pixels of probability >= 0.5, and both at once.
    """
    best = scores.new_full(prediction.output_size, -1.0)
    owner = torch.zeros_like(best, dtype=torch.long)
    inside = torch.zeros_like(best, dtype=torch.bool)
    own = []
    for part, logits in prediction.full_size(kept):
        probability = logits.sigmoid()
        own.append((probability >= 0.5).sum((1, 2)))
        value, index = (probability * scores[part, None, None]).max(0)
        better = value > best  # strictly: the first of equals wins
        best = torch.where(better, value, best)
        owner = torch.where(better, index + part.start, owner)
        inside = torch.where(better, (probability >= 0.5).gather(0, index[None])[0], inside)
    won = torch.bincount(owner.flatten(), minlength=len(kept))
    final = torch.bincount(owner[inside], minlength=len(kept))
    return owner, inside, torch.stack((won, torch.cat(own), final), dim=1)


@torch.no_grad()
def instances(
    prediction: ImagePrediction, things: Sequence[bool], settings: SegmentSettings
) -> dict[str, Tensor]:
    """Scored, possibly overlapping masks of things.

    The best `detections` (query, category) pairs, of which those of things remain; score = category
    probability · mean probability inside the mask (logit > 0).

    Returns:
        scores [n] float, categories [n] i64, masks [n, H, W] bool.
    """
    probability = prediction.class_logits.softmax(1)[:, :-1]  # [Q, K]
    top = probability.flatten().topk(min(settings.detections, probability.numel()), sorted=False)
    query, category = top.indices // len(things), top.indices % len(things)
    kept = torch.tensor(things, device=category.device)[category]
    scores, query, category = top.values[kept], query[kept], category[kept]

    unique, position = query.unique(return_inverse=True)  # a query may appear with several classes
    masks = probability.new_empty((len(unique), *prediction.output_size), dtype=torch.bool)
    quality = probability.new_empty(len(unique))
    for part, logits in prediction.full_size(unique):
        masks[part] = logits > 0
        inside = (logits.sigmoid() * masks[part]).sum((1, 2))
        quality[part] = inside / (masks[part].sum((1, 2)) + 1e-6)
    return {
        "scores": scores * quality[position],
        "categories": category,
        "masks": masks[position],
    }


@torch.no_grad()
def semantic(prediction: ImagePrediction) -> Tensor:
    """Most likely category of every pixel, [H, W] i64: argmax_c Σ_q p(c | q) · mask probability."""
    probability = prediction.class_logits.softmax(1)[:, :-1]  # [Q, K]
    queries = torch.arange(len(probability), device=probability.device)
    scores = probability.new_zeros((probability.shape[1], *prediction.output_size))
    for part, logits in prediction.full_size(queries):
        scores += torch.einsum("qk,qhw->khw", probability[part], logits.sigmoid())
    return scores.argmax(0)
