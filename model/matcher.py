"""Bipartite matching of queries with segments; one call matches all predictions of a step."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model.masked_decoder import Predictions
from model.points import row_sampler, sample_shared
from model.targets import Draw, Targets, draw_rows


class Matches(NamedTuple):
    """Matched pairs of a query and a target.

    Every prediction has the same number of pairs, M = Σ min(Q, N_b). The pairs are ordered by image
    and, within an image, by target.
    """

    image: Tensor  # int64 [M]
    query: Tensor  # int64 [L, M]
    target: Tensor  # int64 [L, M], index in the image's targets
    counts: list[int]  # number of pairs of each image


@torch.no_grad()
def match(
    predictions: Predictions,
    targets: Targets,
    groups: Tensor,
    draw: Draw,
    *,
    points: int,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    void: Tensor | None = None,
) -> Matches:
    """Return the cheapest one-to-one pairs of queries and targets per prediction and image.

    The Hungarian algorithm runs on the host. One copy moves all inputs there, and another moves all
    results back, so a step waits for the GPU only once here.

    Args:
        predictions: Predictions of all layers, in float32 or float64; the mask features may have
            fewer bits.
        targets: The segments of every image.
        groups: `neighbors` of the targets' maps.
        draw: Random numbers. For prediction i of each image, the purpose is "match/i" and the shape
            is (points, 2).
        points: Number of points at which the masks are compared.
        class_weight: Weight of the class cost.
        mask_weight: Weight of the mean binary cross entropy.
        dice_weight: Weight of the dice cost.
        void: `neighbors` of `Targets.void`, to leave out the points beside such pixels; None: no
            point is left out.

    Raises:
        FloatingPointError: Class or mask logits are not finite. The error names the first
            prediction with such logits.
    """
    cost = class_weight * class_cost(predictions.class_logits, targets.categories)
    sample_features = row_sampler(predictions.mask_features)
    batch = len(predictions.mask_features)
    for part in at_once(len(cost), cost.device):
        locations = [draw_rows(draw, f"match/{i}", [1] * batch, (points, 2)) for i in part]
        where = torch.stack(locations, dim=1).to(cost.dtype).flatten(1, 2)  # [B, l·P, 2]
        features = sample_features(where).unflatten(1, (-1, points)).transpose(0, 1)
        masks = sample_shared(groups, targets.layer, targets.value, where)  # [B, N, l·P]
        masks = masks.unflatten(2, (-1, points)).permute(2, 0, 1, 3)
        embeddings = predictions.mask_embeddings[part.start : part.stop]
        valid = None
        if void is not None:
            first = targets.layer.new_zeros((batch, 1))
            share = sample_shared(void, first, first + 1, where)  # [B, 1, l·P]
            valid = (share == 0).to(cost.dtype).unflatten(2, (-1, points)).permute(2, 0, 1, 3)
        mask, dice = mask_costs(embeddings @ features.transpose(2, 3), masks, valid)
        cost[part.start : part.stop] += mask_weight * mask + dice_weight * dice
    return _assign(cost, predictions, targets.categories)


def class_cost(logits: Tensor, categories: Tensor) -> Tensor:
    """Return −p(category of target n | query q), [L, B, Q, N].

    Args:
        logits: [L, B, Q, K + 1].
        categories: [B, N], negative for padding.
    """
    index = categories.clamp(min=0)[None, :, None].expand(*logits.shape[:3], -1)
    return -logits.softmax(3).gather(3, index)


def mask_costs(logits: Tensor, masks: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean binary cross entropy and the dice loss of every pair, [.., Q, N] each.

    Args:
        logits: [.., Q, P], mask logits of the queries.
        masks: [.., N, P] in [0, 1], masks of the targets at the same points.
        valid: [.., 1, P], 1 for the points that count, otherwise 0; None: all count.
    """
    # BCE(x, t) = softplus(x) - x·t is linear in t, so all pairs are one matrix product. Beyond 50,
    # softplus(x) equals x in floating point.
    negative, probability = F.softplus(logits, threshold=50), logits.sigmoid()
    count: Tensor | int = logits.shape[-1]
    if valid is not None:
        masks, negative, probability = masks * valid, negative * valid, probability * valid
        count = valid.sum(-1, keepdim=True).clamp(min=1)  # [.., 1, 1]
    truth = masks.transpose(-1, -2)  # [.., P, N]
    bce = (negative.sum(-1, keepdim=True) - logits @ truth) / count
    size = probability.sum(-1, keepdim=True) + truth.sum(-2, keepdim=True)  # [.., Q, N]
    return bce, 1 - (2 * (probability @ truth) + 1) / (size + 1)


def at_once(predictions: int, device: torch.device) -> list[range]:
    """Divide the predictions of a step into parts that are compared with the truth together.

    A GPU takes all of them, because the host would need longer to launch the kernels of each part
    than the GPU to run them. A CPU takes one by one, which needs a tenth of the memory.
    """
    size = 1 if device.type == "cpu" else predictions
    return [range(first, first + size) for first in range(0, predictions, size)]


def _assign(cost: Tensor, predictions: Predictions, categories: Tensor) -> Matches:
    """Return the cheapest pairs for costs [L, B, Q, N], with one packed copy to the host."""
    layers, batch = cost.shape[:2]
    health = torch.stack(
        (
            predictions.class_logits.sum((1, 2, 3)),
            predictions.mask_embeddings.sum((1, 2, 3)) + predictions.mask_features.sum(),
        )
    )  # [2, L]: a NaN or an infinity in any summand makes the sum NaN or infinite
    packed = torch.cat((health.flatten(), categories.flatten() >= 0, cost.flatten())).cpu().numpy()
    head, real, flat = np.split(packed, np.cumsum([health.numel(), categories.numel()]))
    for kind, values in zip(("class", "mask"), head.reshape(2, layers), strict=True):
        if not np.isfinite(values).all():
            first = int(np.argmin(np.isfinite(values)))
            raise FloatingPointError(f"prediction {first} has non-finite {kind} logits")
    costs = flat.reshape(cost.shape)
    real = real.reshape(categories.shape) > 0
    pairs = [[_solve(costs[i, b], real[b], i) for b in range(batch)] for i in range(layers)]
    counts = [pair.shape[1] for pair in pairs[0]]
    image = np.repeat(np.arange(batch), counts)
    both = np.stack([np.concatenate(row, axis=1) for row in pairs])  # [L, 2, M]
    table = torch.from_numpy(np.concatenate((image[None], both.reshape(2 * layers, -1))))
    table = table.to(cost.device, non_blocking=True)  # [1 + 2L, M]
    return Matches(table[0], table[1::2], table[2::2], counts)


def _solve(cost: np.ndarray, real: np.ndarray, prediction: int) -> np.ndarray:
    """Return the query and the target of each pair, int64 [2, min(Q, n)].

    Args:
        cost: [Q, N].
        real: bool [N], true for the n targets that are not padding.
        prediction: Index of the prediction, for the error.
    """
    columns = np.flatnonzero(real)
    cost = cost[:, columns]
    if not np.isfinite(cost).all():
        raise FloatingPointError(f"prediction {prediction} has non-finite mask logits")
    row, query = linear_sum_assignment(cost.T)  # sorted by target
    return np.stack((query, columns[row]))
