"""Panoptic, instance, and semantic segmentations of a batch as one fixed sequence of operations.

The results are those of `model.segment`, which looks at values to leave out work. These functions
never do, so that they can be exported: all results have a fixed number of rows, and rows that are
not used have class -1 and score 0. The file imports only torch, because exports contain a copy.
"""

import torch
from torch import Tensor


def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    is_thing: Tensor,
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return segments that do not overlap, as `model.segment.panoptic` does.

    Args:
        class_logits: [B, Q, K + 1].
        mask_logits: [B, Q, H, W] at the size of the result.
        is_thing: bool [K + 1] for every class; the last value is not used.
        object_threshold: The score that a query must exceed.
        overlap_threshold: The least share of its mask that a segment keeps.

    Returns:
        ids: int32 [B, H, W], 0 = none.
        classes: int32 [B, Q]; segment i is in row i - 1.
        scores: float [B, Q].
    """
    scores, labels = class_logits.softmax(2).max(2)  # [B, Q]
    queries = torch.arange(labels.shape[1], device=labels.device)
    kept = (labels != class_logits.shape[2] - 1) & (scores > object_threshold)
    probability = mask_logits.sigmoid()
    claim = torch.where(kept, scores, -1.0)[:, :, None, None] * probability
    winner = claim.argmax(1, keepdim=True)  # [B, 1, H, W]
    inside = probability >= 0.5
    is_won = winner == queries[:, None, None]
    won, own, final = (x.float().sum((2, 3)) for x in (is_won, inside, is_won & inside))
    accepted = kept & (final > 0) & (won / own.clamp(min=1) >= overlap_threshold)

    # Accepted stuff joins the first accepted query of its category.
    earlier = queries[:, None] > queries  # [Q, Q]: whether the column's query comes first
    joins = (labels[:, :, None] == labels[:, None]) & ~is_thing[labels][:, :, None]
    joins = joins & earlier & accepted[:, None]  # [B, Q, Q]
    first = accepted & ~joins.any(2)  # queries that start a segment
    number = (first[:, None] & ~earlier.T).sum(2)  # [B, Q]: its id, if it starts a segment
    owner = first[:, None] & (joins | (queries[:, None] == queries))
    ids = torch.where(accepted, (owner * number[:, None]).sum(2), 0)  # [B, Q]
    pixels = ids.gather(1, winner.flatten(1)).view(winner.shape)
    pixels = torch.where((is_won & inside).any(1, keepdim=True), pixels, 0)[:, 0]

    rows = first[:, None] & (number[:, None] == queries[:, None] + 1)  # [B, segment, query]
    used = rows.any(2)
    classes = torch.where(used, (rows * labels[:, None]).sum(2), -1)
    return pixels.int(), classes.int(), (rows * scores[:, None]).sum(2)


def instances(
    class_logits: Tensor, mask_logits: Tensor, is_thing: Tensor, detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scored masks of things, as `model.segment.instances` does, the best first.

    Args:
        class_logits: [B, Q, K + 1].
        mask_logits: [B, Q, H, W] at the size of the result.
        is_thing: bool [K + 1] for every class; the last value is not used.
        detections: The number of pairs of a query and a class, N, that become results.

    Returns:
        masks: bool [B, N, H, W].
        classes: int32 [B, N].
        scores: float [B, N].
    """
    probability = class_logits.softmax(2)[..., :-1]  # [B, Q, K]
    categories = probability.shape[2]
    scores, pair = probability.flatten(1).topk(detections)  # [B, N]
    query, classes = pair // categories, pair % categories
    inside = mask_logits > 0
    total = (mask_logits.sigmoid() * inside).sum((2, 3))  # [B, Q]
    quality = total / (inside.float().sum((2, 3)) + 1e-6)
    scores = torch.where(is_thing[classes], scores * quality.gather(1, query), 0)
    classes = torch.where(is_thing[classes], classes, -1)
    scores, order = scores.topk(detections)
    query, classes = query.gather(1, order), classes.gather(1, order)
    images = torch.arange(query.shape[0], device=query.device)[:, None] * inside.shape[1]
    masks = inside.flatten(0, 1)[images + query] & (classes >= 0)[:, :, None, None]
    return masks, classes.int(), scores


def semantic(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return the most likely class of each pixel, int32 [B, H, W], as `model.segment.semantic`."""
    probability = class_logits.softmax(2)[..., :-1]  # [B, Q, K]
    scores = probability.transpose(1, 2) @ mask_logits.sigmoid().flatten(2)
    return scores.argmax(1).unflatten(1, mask_logits.shape[2:]).int()
