"""Degenerate truths and predictions, beyond the formulas of test_criterion.py."""

import pytest
import torch

from model.criterion import Criterion, CriterionSettings, normalisers
from model.targets import Targets
from tests.model.samples import boxes, random_predictions
from tests.model.test_criterion import DRAW, QUERIES, SETTINGS, expected_losses, scene


def losses_of(predictions, targets, settings: CriterionSettings = SETTINGS):
    total = normalisers(targets.categories, QUERIES, settings)
    return Criterion(settings)(predictions, targets, DRAW, total)


def crowd(count: int) -> Targets:
    """One image of `count` segments, a cell each: more than a byte can number."""
    cells = torch.arange(1, count + 1, dtype=torch.int32).view(1, 1, 15, -1)
    maps = cells.repeat_interleave(4, 2).repeat_interleave(4, 3).contiguous()
    return Targets(
        maps,
        torch.arange(count)[None] % 4,
        torch.zeros(1, count, dtype=torch.long),
        torch.arange(1, count + 1)[None],
    )


def test_11_3_three_hundred_instances() -> None:
    predictions = random_predictions(1, 1, QUERIES, 4, 8, (15, 20))
    targets = crowd(300)
    losses = losses_of(predictions, targets)
    terms = expected_losses(predictions, targets)
    for name, expected in terms.items():
        torch.testing.assert_close(losses[name], expected, rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(sum(losses.values()), predictions)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_11_3_a_void_image_only_teaches_no_object() -> None:
    """Beside an image of three segments it changes neither their mask losses nor the count."""
    predictions, targets = scene([3, 0])
    assert not targets.maps[1].any()
    both = losses_of(predictions, targets)
    classes, embeddings, features = predictions
    alone = losses_of(
        type(predictions)(classes[:, :1], embeddings[:, :1], features[:1]),
        Targets(*(x[:1] for x in targets)),
    )
    for name, loss in alone.items():
        if name.startswith("loss_ce"):
            assert loss != both[name]
        else:
            torch.testing.assert_close(loss, both[name], rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(sum(both.values()), predictions)
    assert gradients[0][:, 1].abs().min() > 0
    assert not gradients[1][:, 1].any()
    assert not gradients[2][1].any()


def test_11_3_an_empty_mask_is_pushed_down_and_keeps_its_class() -> None:
    """Dice loss 1 - 1 / (sum of probabilities + 1); its query is to say the object's class."""
    predictions = random_predictions(1, 1, 1, 4, 8, (8, 10))
    targets = boxes((32, 40), [1], 4)
    targets.value.fill_(200)  # nowhere in the map
    settings = CriterionSettings(points=50, importance=0)
    losses = losses_of_one_query(predictions, targets, settings)
    points = DRAW(0, "uniform/0", (1, 50, 2))[0]
    grid = 2 * points[None, None] - 1
    mask = torch.einsum("c,chw->hw", predictions[1][0, 0, 0], predictions[2][0])
    x = torch.nn.functional.grid_sample(mask[None, None], grid, align_corners=False).flatten()
    dice = 1 - 1 / (x.sigmoid().sum() + 1)
    torch.testing.assert_close(losses["loss_dice"], 5 * dice, rtol=0, atol=1e-12)
    bce = torch.nn.functional.softplus(x).mean()
    torch.testing.assert_close(losses["loss_mask"], 5 * bce, rtol=0, atol=1e-12)
    logits = predictions.class_logits[0, 0, 0]
    nll = logits.logsumexp(0) - logits[targets.categories[0, 0]]
    torch.testing.assert_close(losses["loss_ce"], 2 * nll, rtol=0, atol=1e-12)


def losses_of_one_query(predictions, targets, settings: CriterionSettings):
    total = normalisers(targets.categories, 1, settings)
    return Criterion(settings)(predictions, targets, DRAW, total)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_11_3_no_assignment_is_made_of_what_is_not_finite(value: float, monkeypatch) -> None:
    """The error names the prediction and comes before the assignment; nothing is repaired."""
    predictions, targets = scene([3, 1])
    with torch.no_grad():
        predictions.class_logits[2, 1, 0, 0] = value
    monkeypatch.setattr("model.matcher.linear_sum_assignment", pytest.fail)
    with pytest.raises(FloatingPointError, match="prediction 2 has non-finite class logits"):
        losses_of(predictions, targets)
