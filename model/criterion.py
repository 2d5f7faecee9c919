"""Training loss: classes of all queries, and masks of the matched queries at sampled points.

Mask2Former, arXiv 2112.01527, section 3.3; every prediction of the decoder is supervised.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.masked_decoder import Predictions
from model.matcher import Matches, at_once, match
from model.network_settings import CriterionSettings
from model.points import neighbors, sample, sample_pairs, uncertain_points
from model.recompute import recompute
from model.targets import Draw, Targets, draw_rows

__all__ = ["Criterion", "CriterionSettings", "Draw", "Normalizers", "Targets", "normalizers"]


TERMS = ("loss_ce", "loss_mask", "loss_dice")


class Normalizers(NamedTuple):
    """Denominators of the losses of a batch; add those of all micro-batches field by field."""

    num_masks: Tensor  # number of segments, matched or not
    # Sum of the class weights of the cross entropy; see `of_groups` for groups of images.
    class_weight: Tensor
    batches: Tensor | float = 1.0  # number of micro-batches


def normalizers(categories: Tensor, queries: int, settings: CriterionSettings) -> Normalizers:
    """Return the normalizers (float64 scalars) of a micro-batch of categories [B, N], -1 = none."""
    weight = class_weights(categories, queries, settings).sum()
    return Normalizers((categories >= 0).sum().double(), weight, torch.ones_like(weight))


def class_weights(categories: Tensor, queries: int, settings: CriterionSettings) -> Tensor:
    """Return the sum of the class weights of every image's queries, float64 [B]."""
    matched = (categories >= 0).sum(1).double().clamp(max=queries)
    return matched + (queries - matched) * settings.no_object_weight


def of_groups(weights: Tensor, settings: CriterionSettings) -> Tensor:
    """Return what the class loss of each image is divided by if groups of images are normalized.

    It is the weight of the image's group times the number of groups, so that the sum over all
    images is the mean over groups of the weighted mean of each.

    Args:
        weights: `class_weights` of all images of the batch, [B].
        settings: The size of the groups; the last one may be smaller.
    """
    groups = weights.split(settings.class_group)
    return torch.cat([group.sum().expand(len(group)) for group in groups]) * len(groups)


class Criterion:
    """Weighted losses of a micro-batch, as a share of the loss of the whole batch."""

    def __init__(self, settings: CriterionSettings) -> None:
        self.settings = settings

    def __call__(
        self, predictions: Predictions, targets: Targets, draw: Draw, normalizers: Normalizers
    ) -> dict[str, Tensor]:
        """Return the scalars loss_ce, loss_mask, and loss_dice of every prediction.

        Terms of the last prediction have these names; earlier ones add _0 … _{L-2}. The sum over
        all terms and micro-batches is the loss of the batch. Losses are computed in float32, or in
        float64 if the predictions are.

        Args:
            predictions: Predictions of all layers.
            targets: The segments of every image.
            draw: Draws random numbers. It is called for every image and prediction i with the
                purposes and shapes "match/i" (points, 2), "candidates/i" (pairs,
                oversample·points, 2), and "uniform/i" (pairs, (1 - importance)·points, 2).
            normalizers: The sums over the micro-batches of the batch. If groups of images are
                normalized, `class_weight` has what `of_groups` returns for each image.

        Raises:
            FloatingPointError: Logits are not finite; the error names the prediction.
        """
        with torch.autocast(targets.maps.device.type, enabled=False):
            dtype = torch.promote_types(predictions.class_logits.dtype, torch.float32)
            features = predictions.mask_features  # sampled as they are, without a copy in float32
            predictions = Predictions(*(x.to(dtype) for x in predictions))
            groups = neighbors(targets.maps)
            void = neighbors(targets.void()) if self.settings.ignore_void else None
            matches = match(
                predictions._replace(mask_features=features),
                targets,
                groups,
                draw,
                points=self.settings.points,
                class_weight=self.settings.class_weight,
                mask_weight=self.settings.mask_weight,
                dice_weight=self.settings.dice_weight,
                void=void,
            )
            losses = self._losses(predictions, targets, groups, void, matches, draw, normalizers)
        return _terms(losses)

    def not_finite(self, predictions: Predictions) -> dict[str, Tensor]:
        """Return NaN for every term, as a part of the graph that makes all gradients NaN.

        It stands for the losses of predictions that cannot be matched, so that this micro-batch
        has a backward pass like those of other processes, which may wait for it.
        """
        bad = torch.stack([part.float().sum() for part in predictions]).sum() * float("nan")
        return _terms(dict.fromkeys(TERMS, bad.expand(len(predictions.class_logits))))

    def _losses(
        self,
        predictions: Predictions,
        targets: Targets,
        groups: Tensor,
        void: Tensor | None,
        matches: Matches,
        draw: Draw,
        totals: Normalizers,
    ) -> dict[str, Tensor]:
        """Return three weighted losses by name, [L] each."""
        s = self.settings
        if s.class_normalizer == "local":
            queries = predictions.class_logits.shape[2]
            class_total = normalizers(targets.categories, queries, s).class_weight * totals.batches
        else:
            class_total = totals.class_weight
        num_masks = totals.num_masks.clamp(min=1)
        ce = self._classification(predictions.class_logits, targets.categories, matches)
        if s.class_normalizer == "groups":
            share = s.class_weight / class_total.to(ce.device, ce.dtype)  # [B]
            ce = (ce.sum(2) * share).sum(1)
        else:
            ce = ce.sum((1, 2)) * (s.class_weight / class_total)
        bce, dice = self._masks(predictions, targets, groups, void, matches, draw)
        losses = (ce, bce * (s.mask_weight / num_masks), dice * (s.dice_weight / num_masks))
        return dict(zip(TERMS, losses, strict=True))

    def _classification(self, logits: Tensor, categories: Tensor, matches: Matches) -> Tensor:
        """Return the weighted cross entropy of every query, [L, B, Q].

        The class of unmatched queries is "no object".
        """
        layers, _, _, classes = logits.shape
        truth = torch.full(logits.shape[:3], classes - 1, device=logits.device)  # [L, B, Q]
        layer = torch.arange(layers, device=logits.device)[:, None]
        truth[layer, matches.image, matches.query] = categories[matches.image, matches.target]
        weight = logits.new_ones(classes)
        weight[-1:].fill_(self.settings.no_object_weight)  # assignment would wait for the GPU
        loss = F.cross_entropy(logits.flatten(0, 2), truth.flatten(), weight, reduction="none")
        return loss.unflatten(0, truth.shape)

    def _masks(
        self,
        predictions: Predictions,
        targets: Targets,
        groups: Tensor,
        void: Tensor | None,
        matches: Matches,
        draw: Draw,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over matched pairs of mask cross entropy and of dice loss, [L] each."""
        layers, pairs = matches.query.shape
        if not pairs:  # zero, but part of the graph, so that the mask head has gradients
            zero = predictions.mask_embeddings.sum((1, 2, 3)) + predictions.mask_features.sum()
            return zero * 0, zero * 0
        logits = _matched_logits(predictions, matches)  # [L, M, h, w]
        # Every prediction has pairs and uncertain points that differ from those of the others, so
        # it draws separately. The losses of all predictions are then computed as one batch.
        sampled = zip(
            *(
                self._points(part, logits.detach(), groups, void, targets, matches, draw)
                for part in at_once(layers, logits.device)
            ),
            strict=True,
        )
        losses = recompute(pair_losses, logits.flatten(0, 1), *map(torch.cat, sampled))
        return losses.unflatten(1, (layers, pairs)).sum(2).unbind()

    @torch.no_grad()
    def _points(
        self,
        part: range,
        logits: Tensor,
        groups: Tensor,
        void: Tensor | None,
        targets: Targets,
        matches: Matches,
        draw: Draw,
    ) -> tuple[Tensor, ...]:
        """Return points [l·M, P, 2] and their truth [l·M, P] for a part of l predictions.

        If `void` is given, the third result says which points count. The logits [L, M, h, w] are
        those of all predictions.
        """
        s = self.settings
        keep = int(s.importance * s.points)

        # One draw per image, keyed by image and prediction: the points of an image do not depend on
        # the other images of its micro-batch, so a batch may be split in any way.
        def uniform(purpose: str, points: int) -> Tensor:
            drawn = [draw_rows(draw, f"{purpose}/{i}", matches.counts, (points, 2)) for i in part]
            return torch.cat(drawn).to(logits.dtype)

        image = matches.image.repeat(len(part))
        first = torch.zeros_like(image)

        def is_void(points: Tensor) -> Tensor | None:
            return None if void is None else sample_pairs(void, image, first, first + 1, points) > 0

        candidates = uniform("candidates", int(s.oversample * s.points))
        points = uncertain_points(
            logits[part.start : part.stop].flatten(0, 1),
            candidates,
            uniform("uniform", s.points - keep),
            keep,
            is_void(candidates),
        )
        target = matches.target[part.start : part.stop].flatten()
        layer, value = targets.layer[image, target], targets.value[image, target]
        truth = sample_pairs(groups, image, layer, value, points)
        left_out = is_void(points)
        return (points, truth) if left_out is None else (points, truth, ~left_out)


def _terms(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the losses [L] of all predictions as one scalar per prediction, by their names."""
    terms = {}
    for name, values in losses.items():
        *auxiliary, last = values.unbind()
        terms[name] = last
        terms |= {f"{name}_{i}": value for i, value in enumerate(auxiliary)}
    return terms


def pair_losses(
    logits: Tensor, points: Tensor, truth: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Return the mean binary cross entropy and the dice loss of masks, [2, M].

    Args:
        logits: [M, h, w].
        points: [M, P, 2], the points of each mask.
        truth: [M, P], the matched mask at these points.
        valid: bool [M, P], the points that count; None: all.
    """
    x = sample(logits[:, None], points)[:, 0]  # [M, P]
    bce, p = F.binary_cross_entropy_with_logits(x, truth, reduction="none"), x.sigmoid()
    if valid is None:
        bce = bce.mean(1)
    else:
        bce, p, truth = bce * valid, p * valid, truth * valid
        bce = bce.sum(1) / valid.sum(1).clamp(min=1)
    dice = 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)
    return torch.stack((bce, dice))


def _matched_logits(predictions: Predictions, matches: Matches) -> Tensor:
    """Return the mask logits [L, M, h, w] of the matched queries only.

    One matrix product per image gives the logits of all predictions.
    """
    features = predictions.mask_features
    layer = torch.arange(len(matches.query), device=features.device)[:, None]
    rows = predictions.mask_embeddings[layer, matches.image, matches.query]  # [L, M, C]
    logits = [
        embedding @ feature
        for embedding, feature in zip(
            rows.split(matches.counts, dim=1), features.flatten(2).unbind(), strict=True
        )
    ]
    return torch.cat(logits, dim=1).unflatten(2, features.shape[2:])
