"""The sizes, initial values, attention, and cached constants of the network, and a training."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.criterion import Criterion, CriterionSettings, normalizers
from model.deformable_attention import deformable_attention
from model.mask2former import Mask2Former, ModelSettings, normalize
from model.masked_decoder import MaskedDecoderSettings, attention_mask, shrink
from model.pixel_decoder import PixelDecoderSettings
from model.settings import SettingError
from tests.model.samples import boxes, keyed_draw, tiny_settings

BOTH = pytest.mark.usefixtures("with_and_without_kernels")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)


def count(tensors) -> int:
    return sum(x.numel() for x in tensors)


@pytest.mark.parametrize(
    ("backbone", "queries", "total", "backbone_total"),
    [
        ("resnet50", 100, 44_036_998, 23_508_032),
        ("resnet101", 100, 63_029_126, 42_500_160),
        ("swin_tiny", 100, 47_435_264, 27_520_698),
        ("swin_small", 100, 68_753_168, 48_838_602),
        ("swin_base", 100, 106_917_822, 86_880_376),
        ("swin_large", 200, 215_535_610, 195_201_204),
    ],
)
def test_published_sizes(backbone: str, queries: int, total: int, backbone_total: int) -> None:
    norm = "batch" if backbone.startswith("resnet") else "frozen_batch"
    settings = ModelSettings(backbone=backbone, queries=queries, norm=norm)
    with torch.device("meta"):
        model = Mask2Former(settings, num_classes=133)
    assert count(model.backbone.parameters()) == backbone_total
    assert count(model.parameters()) == total

    head = [m for m in model.modules() if m not in set(model.backbone.modules())]
    norms = [p for m in head if isinstance(m, NORMS) for p in m.parameters()]
    embeddings = [p for m in head if isinstance(m, nn.Embedding) for p in m.parameters()]
    assert count(norms) == 23_040
    assert count(embeddings) == 512 * queries + 768


def test_frozen_normalization_has_no_parameters() -> None:
    with torch.device("meta"):
        model = Mask2Former(ModelSettings(), num_classes=133)
    assert count(model.parameters()) == 43_983_878
    assert "backbone.body.embedder.embedder.normalization.weight" in dict(model.named_buffers())


@pytest.fixture(scope="module")
def head() -> Mask2Former:
    torch.manual_seed(0)
    small = tiny_settings().backbone_config
    return Mask2Former(ModelSettings(backbone="resnet", backbone_config=small), num_classes=133)


def assert_uniform(tensor: torch.Tensor, bound: float) -> None:
    """Check that a tensor of 100 values or more looks uniform in [-bound, bound]."""
    assert tensor.abs().max() <= bound
    assert tensor.abs().max() > 0.9 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_initial_values(head: Mask2Former) -> None:
    encoder, decoder = head.pixel_decoder, head.masked_decoder
    for conv, _ in encoder.input_proj:
        assert_uniform(conv.weight, math.sqrt(6 / (conv.in_channels + 256)))
        assert not conv.bias.any()
    assert_uniform(encoder.lateral[0].weight, math.sqrt(3 / 16))
    assert_uniform(encoder.output[0].weight, math.sqrt(3 / (256 * 9)))
    assert_uniform(encoder.mask_features.weight, math.sqrt(3 / 256))
    assert not encoder.mask_features.bias.any()
    for layer in encoder.layers:
        attention = layer.self_attn
        assert not attention.attention_weights.weight.any()
        assert not attention.attention_weights.bias.any()
        assert not attention.sampling_offsets.weight.any()
        for linear in (attention.value_proj, attention.output_proj):
            assert_uniform(linear.weight, math.sqrt(6 / 512))
            assert not linear.bias.any()
        for linear, fan_in in ((layer.linear1, 256), (layer.linear2, 1024)):
            assert_uniform(linear.weight, math.sqrt(6 / 1280))
            assert_uniform(linear.bias, 1 / math.sqrt(fan_in))
        assert torch.equal(layer.linear1.bias, encoder.layers[0].linear1.bias)
    first, second = encoder.layers[:2]
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    for layer in decoder.layers:
        for attention in (layer.cross_attn, layer.self_attn):
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                assert_uniform(linear.weight, math.sqrt(6 / 1024))
                assert not linear.bias.any()
            assert_uniform(attention.out_proj.weight, math.sqrt(6 / 512))
            assert not attention.out_proj.bias.any()
        for linear, fan_in in ((layer.linear1, 256), (layer.linear2, 2048)):
            assert_uniform(linear.weight, math.sqrt(6 / 2304))
            assert_uniform(linear.bias, 1 / math.sqrt(fan_in))
    for linear in (decoder.class_head, *decoder.mask_head[::2]):
        assert_uniform(linear.weight, 1 / 16)
        assert_uniform(linear.bias, 1 / 16)
    for embedding in (encoder.level_embed, decoder.query_feat.weight, decoder.query_embed.weight):
        assert embedding.std().item() == pytest.approx(1, abs=0.1)
    assert decoder.level_embed.weight.std().item() == pytest.approx(1, abs=0.1)


def test_initial_offsets_are_squares_around_the_pixel(head: Mask2Former) -> None:
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    steps = torch.arange(1, 5)[None, None, :, None]
    expected = torch.tensor(directions)[:, None, None] * steps  # [heads, 1, points, 2]
    for layer in head.pixel_decoder.layers:
        bias = layer.self_attn.sampling_offsets.bias.view(8, 3, 4, 2)
        torch.testing.assert_close(bias, expected.expand(8, 3, 4, 2).float(), rtol=0, atol=1e-5)


@BOTH
def test_deformable_attention_sums_bilinear_samples() -> None:
    torch.manual_seed(0)
    batch, heads, dim, queries, points = 2, 2, 3, 5, 4
    shapes = ((2, 3), (4, 6))
    value = torch.randn(batch, 30, heads, dim, dtype=torch.float64)
    locations = 1.4 * torch.rand(batch, queries, heads, 2, points, 2, dtype=torch.float64) - 0.2
    weights = torch.rand(batch, queries, heads, 2, points, dtype=torch.float64)

    def pixel(b: int, head: int, level: int, y: int, x: int) -> torch.Tensor:
        height, width = shapes[level]
        if not (0 <= y < height and 0 <= x < width):
            return torch.zeros(dim, dtype=torch.float64)
        return value[b, 6 * level + y * width + x, head]

    expected = torch.zeros(batch, queries, heads, dim, dtype=torch.float64)
    for b, q, head, level, p in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, queries, heads, 2, points))
    ).tolist():
        height, width = shapes[level]
        u, v = locations[b, q, head, level, p].tolist()
        x, y = u * width - 0.5, v * height - 0.5
        left, top = math.floor(x), math.floor(y)
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[b, q, head, level, p]
            expected[b, q, head] += share * pixel(b, head, level, row, column)
    result = deformable_attention(value, shapes, locations, weights)
    torch.testing.assert_close(result, expected.flatten(2), rtol=0, atol=1e-12)


def test_attention_mask_permits_logits_of_zero_and_never_excludes_all() -> None:
    logits = torch.tensor([[[1.0, -1.0, 0.0, -1e-8], [-1.0, -2.0, -3.0, -4.0]]])
    expected = [[[[True, False, True, True], [True] * 4]]]
    assert attention_mask(logits).tolist() == expected


def test_masks_from_resized_features_are_resized_masks() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 8, 16, 24, dtype=torch.float64)
    embeddings = torch.randn(1, 5, 8, dtype=torch.float64)
    masks = torch.einsum("bqc,bchw->bqhw", embeddings, features)
    for size in ((2, 3), (4, 6), (8, 12)):
        early = shrink(features, 16 // size[0]).flatten(2)
        late = F.interpolate(masks, size, mode="bilinear").flatten(2)
        torch.testing.assert_close(embeddings @ early, late, rtol=0, atol=1e-12)


@BOTH
def test_shapes_and_gradients() -> None:
    torch.manual_seed(0)
    model = Mask2Former(tiny_settings(), num_classes=5)
    predictions = model(torch.randn(2, 3, 64, 96))
    assert predictions.class_logits.shape == (4, 2, 16, 6)
    assert predictions.mask_embeddings.shape == (4, 2, 16, 64)
    assert predictions.mask_features.shape == (2, 64, 16, 24)
    sum(x.square().sum() for x in predictions).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@BOTH
def test_constants_cached_in_inference_are_used_in_training() -> None:
    torch.manual_seed(0)
    model = Mask2Former(tiny_settings(), num_classes=5)
    images = torch.randn(1, 3, 160, 32)  # constants of this shape are not cached by other tests
    with torch.inference_mode():
        model(images)
    model(images).mask_embeddings.sum().backward()


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@BOTH
def test_autocast_predictions_stay_close(dtype: str, expected: torch.dtype) -> None:
    torch.manual_seed(0)
    settings = tiny_settings(pixel_decoder=PixelDecoderSettings(dtype=dtype))
    model = Mask2Former(settings, num_classes=5).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        full = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(images)
    assert half.mask_features.dtype == expected
    error = (half.mask_features.float() - full.mask_features).norm() / full.mask_features.norm()
    assert error < 0.05


@BOTH
def test_copies_are_independent() -> None:
    torch.manual_seed(0)
    model = Mask2Former(tiny_settings(), num_classes=5).eval()
    twin = copy.deepcopy(model)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = twin(images)
        for parameter in model.parameters():
            parameter.zero_()
        assert all(torch.equal(a, b) for a, b in zip(before, twin(images), strict=True))


def test_normalize() -> None:
    gray = torch.full((2, 3, 4, 4), 128, dtype=torch.uint8)
    expected = [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    pixels = normalize(gray)[1, :, 2, 3]
    torch.testing.assert_close(pixels, torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnet18"}, r"^backbone=resnet18; choose one of .*resnet50"),
        ({"norm": "layer"}, r"^norm=layer; choose one of .*group"),
        ({"backbone": "swin", "norm": "group"}, r"^norm=group is for ResNets; .*swin"),
        ({"drop_path": 1.0}, r"^drop_path=1\.0; it must be less than 1$"),
        ({"dim": 60}, r"^dim=60; it must be a multiple of 8$"),
        ({"queries": 0}, r"^queries=0; it must be at least 1$"),
        ({"pixel_decoder": PixelDecoderSettings(heads=5)}, r"^pixel_decoder\.heads=5; .*dim=64"),
        ({"masked_decoder": MaskedDecoderSettings(heads=3)}, r"^masked_decoder\.heads=3; .*dim=64"),
    ],
)
def test_wrong_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tiny_settings(**changes)


def test_unpadded_images_are_refused() -> None:
    model = Mask2Former(tiny_settings(), num_classes=5)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(torch.zeros(1, 3, 64, 65))


@BOTH
def test_one_sample_can_be_learned() -> None:
    torch.manual_seed(0)
    model = Mask2Former(tiny_settings(), num_classes=3)
    targets = boxes((64, 64), [3], classes=3)
    images = torch.randn(1, 3, 64, 64) + targets.maps.sum(1, keepdim=True)
    settings = CriterionSettings(points=256)
    criterion, draw = Criterion(settings), keyed_draw()
    totals = normalizers(targets.categories, 16, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(40):
        loss = sum(criterion(model(images), targets, draw, totals).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.25 * history[0]
