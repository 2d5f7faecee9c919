"""Matching and losses agree with the formulas, written out for each pair in float64."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model.criterion import (
    Criterion,
    CriterionSettings,
    Normalizers,
    class_weights,
    normalizers,
    of_groups,
)
from model.masked_decoder import Predictions
from model.matcher import match
from model.points import neighbors
from model.settings import SettingError
from model.targets import Targets
from tests.model.samples import boxes, keyed_draw, random_predictions

LAYERS, QUERIES, CLASSES, DIM = 3, 6, 4, 8
SETTINGS = CriterionSettings(points=50)
DRAW = keyed_draw(dtype=torch.float64)


def scene(counts: list[int], layers: int = LAYERS) -> tuple[Predictions, Targets]:
    predictions = random_predictions(layers, len(counts), QUERIES, CLASSES, DIM, (8, 10))
    return predictions, boxes((32, 40), counts, CLASSES)


def at(plane: Tensor, points: Tensor) -> Tensor:
    """Return a plane [H, W] at points [P, 2]."""
    grid = 2 * points[None, None] - 1
    return F.grid_sample(plane[None, None], grid, align_corners=False)[0, 0, 0]


def labeled(targets: Targets, b: int, points: Tensor) -> Tensor:
    """Return which points [P, 2] have no pixel among their neighbors that no mask covers."""
    masks = [truth(targets, b, n) for n in range(targets.value.shape[1])
             if targets.categories[b, n] >= 0]  # fmt: skip
    return at(1 - torch.stack(masks).amax(0), points) == 0


def bce(x: Tensor, t: Tensor) -> Tensor:
    return (t * torch.logaddexp(-x, x * 0) + (1 - t) * torch.logaddexp(x, x * 0)).mean()


def dice(x: Tensor, t: Tensor) -> Tensor:
    p = 1 / (1 + (-x).exp())
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def truth(targets: Targets, b: int, n: int) -> Tensor:
    return (targets.maps[b, targets.layer[b, n]] == targets.value[b, n]).double()


def pair_cost(
    predictions: Predictions, targets: Targets, i: int, b: int, q: int, n: int, void: bool = False
) -> Tensor:
    points = DRAW(b, f"match/{i}", (SETTINGS.points, 2))
    points = points[labeled(targets, b, points)] if void else points
    mask = torch.einsum("c,chw->hw", predictions.mask_embeddings[i, b, q], predictions[2][b])
    x, t = at(mask, points), at(truth(targets, b, n), points)
    probability = predictions.class_logits[i, b, q].softmax(0)[targets.categories[b, n]]
    return -2 * probability + 5 * bce(x, t) + 5 * dice(x, t)


def expected_losses(
    predictions: Predictions, targets: Targets, void: bool = False
) -> dict[str, Tensor]:
    layers, batch = predictions.class_logits.shape[:2]
    counts = (targets.categories >= 0).sum(1).tolist()
    num_masks = max(sum(counts), 1)
    terms = {}
    for i in range(layers):
        cross, weights, masks, dices = 0, 0, 0, 0
        for b in range(batch):
            cost = torch.zeros(QUERIES, counts[b])
            for q, n in itertools.product(range(QUERIES), range(counts[b])):
                cost[q, n] = pair_cost(predictions, targets, i, b, q, n, void)
            pairs = linear_sum_assignment(cost.detach().numpy())
            label = dict(zip(*pairs, strict=True))
            for q in range(QUERIES):
                logits = predictions.class_logits[i, b, q]
                c = int(targets.categories[b, label[q]]) if q in label else CLASSES
                weight = 1.0 if q in label else 0.1
                cross = cross + weight * (logits.logsumexp(0) - logits[c])
                weights += weight
            pairs = sorted(label.items(), key=lambda pair: pair[1])
            candidates = DRAW(b, f"candidates/{i}", (len(pairs), 150, 2))
            uniform = DRAW(b, f"uniform/{i}", (len(pairs), 13, 2))
            for row, (q, n) in enumerate(pairs):
                embedding = predictions.mask_embeddings[i, b, q]
                mask = torch.einsum("c,chw->hw", embedding, predictions.mask_features[b])
                drawn = candidates[row]
                drawn = drawn[labeled(targets, b, drawn)] if void else drawn
                order = at(mask.detach(), drawn).abs().argsort()
                points = torch.cat((drawn[order[:37]], uniform[row]))
                points = points[labeled(targets, b, points)] if void else points
                x, t = at(mask, points), at(truth(targets, b, int(n)), points)
                masks, dices = masks + bce(x, t), dices + dice(x, t)
        suffix = "" if i == layers - 1 else f"_{i}"
        terms[f"loss_ce{suffix}"] = 2 * cross / weights
        terms[f"loss_mask{suffix}"] = 5 * masks / num_masks
        terms[f"loss_dice{suffix}"] = 5 * dices / num_masks
    return terms


@pytest.mark.parametrize("normalizer", ["global", "local"])
@pytest.mark.parametrize("counts", [[3, 0, 8], [1], [2, 5]])  # 8 > 6 queries; the third is empty
def test_losses_and_gradients_follow_the_formulas(counts: list[int], normalizer: str) -> None:
    predictions, targets = scene(counts)
    if counts == [2, 5]:
        targets.value[1, 2] = 200  # not in the map: an empty mask is a valid target
    settings = CriterionSettings(points=SETTINGS.points, class_normalizer=normalizer)
    expected = expected_losses(predictions, targets)
    wanted = torch.autograd.grad(sum(expected.values()), predictions)
    totals = normalizers(targets.categories, QUERIES, settings)
    losses = Criterion(settings)(predictions, targets, DRAW, totals)
    gradients = torch.autograd.grad(sum(losses.values()), predictions)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=1e-10)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("counts", [[3, 8], [2, 0, 5]])
def test_void_pixels_are_left_out_of_matching_and_losses(counts: list[int]) -> None:
    predictions, targets = scene(counts)
    settings = CriterionSettings(points=SETTINGS.points, ignore_void=True)
    expected = expected_losses(predictions, targets, void=True)
    wanted = torch.autograd.grad(sum(expected.values()), predictions)
    totals = normalizers(targets.categories, QUERIES, settings)
    losses = Criterion(settings)(predictions, targets, DRAW, totals)
    gradients = torch.autograd.grad(sum(losses.values()), predictions)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=1e-10)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-10)
    with_void = Criterion(SETTINGS)(predictions, targets, DRAW, totals)
    assert not torch.equal(with_void["loss_mask"], losses["loss_mask"])


def test_void_pixels_have_no_gradient_at_all() -> None:
    targets = boxes((32, 40), [3, 2], CLASSES)
    predictions = random_predictions(LAYERS, 2, QUERIES, CLASSES, DIM, (32, 40))
    void = targets.void()[:, 0].bool()
    assert 0.2 < void.double().mean() < 0.8
    gradients = {}
    for ignore in (False, True):
        settings = CriterionSettings(points=400, ignore_void=ignore)
        totals = normalizers(targets.categories, QUERIES, settings)
        losses = Criterion(settings)(predictions, targets, DRAW, totals)
        (gradient,) = torch.autograd.grad(sum(losses.values()), [predictions.mask_features])
        gradients[ignore] = gradient.abs().amax(1)  # [B, H, W]
    assert gradients[False][void].max() > 0
    assert gradients[True][void].max() == 0
    assert gradients[True][~void].max() > 0


def test_void_is_what_no_segment_covers() -> None:
    """The third segment is a crowd: it is in the map, and not among the targets."""
    maps = torch.tensor([[[[0, 1, 2], [3, 3, 1]]]], dtype=torch.uint8)
    columns = torch.tensor([[[5, 6, -1]], [[0, 0, 0]], [[1, 2, 0]]])
    assert Targets(maps, *columns).void().tolist() == [[[[1, 0, 0], [1, 1, 0]]]]


def test_matching_is_optimal() -> None:
    predictions, targets = scene([3], layers=2)
    groups = neighbors(targets.maps)
    matches = match(
        predictions, targets, groups, DRAW, points=50, class_weight=2, mask_weight=5, dice_weight=5
    )
    assert matches.counts == [3]
    for i in range(2):
        cost = torch.stack(
            [
                torch.stack([pair_cost(predictions, targets, i, 0, q, n) for n in range(3)])
                for q in range(QUERIES)
            ]
        )
        choices = itertools.permutations(range(QUERIES), 3)
        best = min(sum(cost[q, n].item() for n, q in enumerate(choice)) for choice in choices)
        found = cost[matches.query[i], matches.target[i]].sum().item()
        assert found == pytest.approx(best, abs=1e-10)


def test_whole_batch_without_targets() -> None:
    predictions, targets = scene([2, 2])
    targets.categories.fill_(-1)
    settings = CriterionSettings(points=50)
    totals = normalizers(targets.categories, QUERIES, settings)
    losses = Criterion(settings)(predictions, targets, DRAW, totals)
    assert all(losses[f"loss_mask{s}"] == losses[f"loss_dice{s}"] == 0 for s in ("", "_0", "_1"))
    nothing = -predictions.class_logits[-1].log_softmax(2)[..., -1].mean()
    torch.testing.assert_close(losses["loss_ce"], 2 * nothing, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(sum(losses.values()), predictions)
    assert gradients[1].abs().max() == gradients[2].abs().max() == 0

    none = Targets(targets.maps, *(x[:, :0] for x in targets[1:]))  # no column at all
    again = Criterion(settings)(predictions, none, DRAW, totals)
    assert again == losses


def test_padding_may_stand_anywhere() -> None:
    predictions, targets = scene([3, 1])
    totals = normalizers(targets.categories, QUERIES, SETTINGS)
    losses = Criterion(SETTINGS)(predictions, targets, DRAW, totals)
    order = torch.tensor([[0, 1, 2], [1, 0, 2]])  # image 1: padding first
    moved = Targets(targets.maps, *(x.gather(1, order) for x in targets[1:]))
    assert moved.categories[1, 0] == -1
    assert Criterion(SETTINGS)(predictions, moved, DRAW, totals) == losses


def test_micro_batches_add_up() -> None:
    predictions, targets = scene([3, 0, 8, 1])
    criterion = Criterion(SETTINGS)
    parts = [slice(0, 1), slice(1, 4)]
    sums = [normalizers(targets.categories[part], QUERIES, SETTINGS) for part in parts]
    totals = Normalizers(*(sum(values) for values in zip(*sums, strict=True)))
    whole = criterion(
        predictions, targets, DRAW, normalizers(targets.categories, QUERIES, SETTINGS)
    )
    wanted = torch.autograd.grad(sum(whole.values()), predictions)
    gradients = [torch.zeros_like(x) for x in predictions]
    for part in parts:
        classes, embeddings, features = predictions
        piece = Predictions(classes[:, part], embeddings[:, part], features[part])
        draw = keyed_draw(part.start, torch.float64)
        losses = criterion(piece, Targets(*(x[part] for x in targets)), draw, totals)
        for total, share in zip(
            gradients, torch.autograd.grad(sum(losses.values()), predictions), strict=True
        ):
            total += share
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-13)


def test_local_normalizer_averages_micro_batches() -> None:
    predictions, targets = scene([3, 1])
    settings = CriterionSettings(points=50, class_normalizer="local")
    classes, embeddings, features = predictions
    total, means = 0, []
    for b in range(2):
        piece = Predictions(classes[:, b : b + 1], embeddings[:, b : b + 1], features[b : b + 1])
        target = Targets(*(x[b : b + 1] for x in targets))
        own = normalizers(target.categories, QUERIES, settings)
        draw = keyed_draw(b, torch.float64)
        means.append(Criterion(settings)(piece, target, draw, own)["loss_ce"])
        both = own._replace(batches=own.batches * 2)
        total = total + Criterion(settings)(piece, target, draw, both)["loss_ce"]
    torch.testing.assert_close(total, sum(means) / 2, rtol=0, atol=1e-13)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 9])
def test_groups_of_images_are_averaged(group: int) -> None:
    """The class loss is the mean of those of the groups, as over GPUs; masks have no groups."""
    predictions, targets = scene([3, 0, 8, 1])
    settings = CriterionSettings(points=50, class_normalizer="groups", class_group=group)
    weights = class_weights(targets.categories, QUERIES, settings)
    totals = normalizers(targets.categories, QUERIES, settings)
    whole = Criterion(SETTINGS)(predictions, targets, DRAW, totals)
    parts = [slice(first, first + group) for first in range(0, 4, group)]
    classes, embeddings, features = predictions
    means = []
    for part in parts:
        piece = Predictions(classes[:, part], embeddings[:, part], features[part])
        truth = Targets(*(x[part] for x in targets))
        own = normalizers(truth.categories, QUERIES, settings)
        draw = keyed_draw(part.start, torch.float64)
        means.append(Criterion(SETTINGS)(piece, truth, draw, own))
    totals = totals._replace(class_weight=of_groups(weights, settings))
    losses = Criterion(settings)(predictions, targets, DRAW, totals)
    for name, loss in losses.items():
        is_class = name.startswith("loss_ce")
        wanted = sum(mean[name] for mean in means) / len(parts) if is_class else whole[name]
        torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("counts", [[3, 1], [0, 0]])
@pytest.mark.parametrize(
    ("field", "kind", "value"),
    [(0, "class", np.nan), (0, "class", np.inf), (1, "mask", np.nan), (1, "mask", -np.inf)],
)
def test_non_finite_predictions_are_named(
    counts: list[int], field: int, kind: str, value: float
) -> None:
    predictions, targets = scene([3, 1])
    if not any(counts):
        targets.categories.fill_(-1)
    with torch.no_grad():
        predictions[field][1, 0, 2, 3] = value
    totals = normalizers(targets.categories, QUERIES, SETTINGS)
    with pytest.raises(FloatingPointError, match=f"prediction 1 has non-finite {kind} logits"):
        Criterion(SETTINGS)(predictions, targets, DRAW, totals)


def test_half_precision_predictions_are_judged_in_float32() -> None:
    predictions, targets = scene([3, 1])
    half = Predictions(*(x.detach().bfloat16() for x in predictions))
    full = Predictions(*(x.float() for x in half))
    totals = normalizers(targets.categories, QUERIES, SETTINGS)
    draw = keyed_draw()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = Criterion(SETTINGS)(half, targets, draw, totals)
    assert losses == Criterion(SETTINGS)(full, targets, draw, totals)
    assert losses["loss_mask"].dtype == torch.float32


@pytest.mark.parametrize(
    "change",
    [{"points": 0}, {"oversample": 0.5}, {"importance": 1.5}, {"class_normalizer": "lokal"}],
)
def test_wrong_settings_are_named(change: dict) -> None:
    (name,) = change
    with pytest.raises(SettingError, match=rf"^{name}="):
        CriterionSettings(**change)
