"""The published constants of backbones, and losses of degenerate targets."""

import pytest
import torch
from torch import nn

from model.backbone import Backbone
from model.criterion import Criterion, CriterionSettings, normalizers
from model.norms import FrozenBatchNorm2d
from model.targets import Targets
from tests.model.samples import boxes, random_predictions
from tests.model.test_criterion import DRAW, QUERIES, SETTINGS, expected_losses, scene

# Blocks per stage, channels, heads per stage, and window size, as in arXiv 2103.14030.
SWINS = {
    "swin_tiny": ([2, 2, 6, 2], 96, [3, 6, 12, 24], 7),
    "swin_small": ([2, 2, 18, 2], 96, [3, 6, 12, 24], 7),
    "swin_base": ([2, 2, 18, 2], 128, [4, 8, 16, 32], 12),
    "swin_large": ([2, 2, 18, 2], 192, [6, 12, 24, 48], 12),
}


@pytest.mark.parametrize("name", SWINS)
def test_constants_of_swin(name: str) -> None:
    blocks, width, heads, window = SWINS[name]
    with torch.device("meta"):
        backbone = Backbone(name)
    config = backbone.body.config
    assert [len(stage.blocks) for stage in backbone.body.swin.encoder.layers] == blocks
    assert backbone.channels == {4: width, 8: 2 * width, 16: 4 * width, 32: 8 * width}
    assert (list(config.num_heads), config.window_size) == (heads, window)
    assert (config.mlp_ratio, config.qkv_bias, config.hidden_act) == (4, True, "gelu")
    assert not config.use_absolute_embeddings
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0
    norms = [m for m in backbone.modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert list(backbone.body.hidden_states_norms) == ["stage1", "stage2", "stage3", "stage4"]
    rates = [0.3 * k / (sum(blocks) - 1) for k in range(1, sum(blocks)) for _ in range(2)]
    assert [path.rate for path in backbone.drop_paths] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet50", [3, 4, 6, 3]), ("resnet101", [3, 4, 23, 3])]
)
def test_constants_of_resnet(name: str, blocks: list[int]) -> None:
    """The stride is in the 3x3 convolution, as in torchvision; norms are frozen, with eps 1e-5."""
    with torch.device("meta"):
        backbone = Backbone(name)
    stem, stages = backbone.body.embedder.embedder.convolution, backbone.body.encoder.stages
    assert (stem.kernel_size, stem.stride, stem.out_channels) == ((7, 7), (2, 2), 64)
    assert [len(stage.layers) for stage in stages] == blocks
    assert backbone.channels == {4: 256, 8: 512, 16: 1024, 32: 2048}
    for i, stage in enumerate(stages):
        strides = [layer.convolution.stride[0] for layer in stage.layers[0].layer]
        assert strides == [1, 2 if i else 1, 1]
    norms = [m for m in backbone.modules() if "norm" in type(m).__name__.lower()]
    assert {(type(norm), norm.eps) for norm in norms} == {(FrozenBatchNorm2d, 1e-5)}


def losses_of(predictions, targets, settings: CriterionSettings = SETTINGS):
    total = normalizers(targets.categories, predictions.class_logits.shape[2], settings)
    return Criterion(settings)(predictions, targets, DRAW, total)


def crowd(count: int) -> Targets:
    """Return an image with a segment in each of `count` cells, which can be more than 255."""
    cells = torch.arange(1, count + 1, dtype=torch.int32).view(1, 1, 15, -1)
    maps = cells.repeat_interleave(4, 2).repeat_interleave(4, 3).contiguous()
    return Targets(
        maps,
        torch.arange(count)[None] % 4,
        torch.zeros(1, count, dtype=torch.long),
        torch.arange(1, count + 1)[None],
    )


def test_three_hundred_instances() -> None:
    predictions = random_predictions(1, 1, QUERIES, 4, 8, (15, 20))
    targets = crowd(300)
    losses = losses_of(predictions, targets)
    for name, expected in expected_losses(predictions, targets).items():
        torch.testing.assert_close(losses[name], expected, rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(sum(losses.values()), predictions)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_void_image_only_teaches_no_object() -> None:
    """It changes neither the mask losses of another image nor the number that divides them."""
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


def test_an_empty_mask_is_pushed_down_and_keeps_its_class() -> None:
    """Its dice loss is 1 - 1 / (sum of probabilities + 1), and its class is still a target."""
    predictions = random_predictions(1, 1, 1, 4, 8, (8, 10))
    targets = boxes((32, 40), [1], 4)
    targets.value.fill_(200)  # a value that is not in the map
    settings = CriterionSettings(points=50, importance=0)
    losses = losses_of(predictions, targets, settings)
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_not_matched(value: float, monkeypatch) -> None:
    """The error names the prediction and is raised before the assignment."""
    predictions, targets = scene([3, 1])
    with torch.no_grad():
        predictions.class_logits[2, 1, 0, 0] = value
    monkeypatch.setattr("model.matcher.linear_sum_assignment", pytest.fail)
    with pytest.raises(FloatingPointError, match="prediction 2 has non-finite class logits"):
        losses_of(predictions, targets)
