"""EoMT: its schedule, its random numbers, its masks, its parts, and its exported program."""

import pytest
import torch

from model.criterion import Criterion, CriterionSettings, normalizers
from model.eomt import Eomt, Part, joined, masked_shares
from model.heads import HEADS, build
from model.mask2former import Mask2Former, normalize
from model.masked_decoder import Predictions
from model.network_settings import HEADS as HEAD_NAMES
from model.network_settings import EomtSettings, ModelSettings, SegmentSettings
from model.parts import layers, part_of
from model.portable import Segmenter, trace
from model.settings import SettingError
from tests.model.samples import TINY_BACKBONES, boxes, keyed_draw

BACKBONES = pytest.mark.parametrize("backbone", ["dinov2_vit", "dinov3_vit"])
SCHEDULE = EomtSettings(blocks=2, anneal_start=0.1, anneal_span=0.2, anneal_end=0.7)
SIZE, CLASSES, QUERIES = (64, 96), 5, 7


def eomt(backbone: str = "dinov3_vit", **changes) -> Eomt:
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=backbone,
        backbone_config=TINY_BACKBONES[backbone],
        head="eomt",
        queries=QUERIES,
        eomt=SCHEDULE,
        **changes,
    )
    network = build(settings, CLASSES)
    assert isinstance(network, Eomt)
    return network


def test_the_names_of_heads_are_those_of_networks() -> None:
    assert tuple(HEADS) == HEAD_NAMES
    assert type(build(ModelSettings(backbone="resnet"), 3)) is Mask2Former


def test_the_schedule_by_value() -> None:
    """1 until the start, (1 - t)^0.9, 0 from the end; the defaults are the published."""
    values = {0: [1, 1], 0.1: [1, 1], 0.2: [0.5**0.9, 1], 0.3: [0, 1], 0.54: [0, 0.8**0.9],
              0.7: [0, 0], 1: [0, 0]}  # fmt: skip
    for progress, shares in values.items():
        assert masked_shares(progress, SCHEDULE) == pytest.approx(shares, abs=1e-9)
    # Published for 88,692 steps: starts 14782, 29564, 44346, 59128, ends 29564, 44346, 59128, 73910
    published = EomtSettings()
    assert masked_shares(14_782 / 88_692, published) == pytest.approx([1] * 4)
    middle = [0.5**0.9, 1, 1, 1]
    assert masked_shares(22_173 / 88_692, published) == pytest.approx(middle)
    assert masked_shares(59_128 / 88_692, published) == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert masked_shares(73_910 / 88_692, published) == pytest.approx([0] * 4, abs=1e-9)
    # For three blocks and 177,384 steps: starts 29564, 73910, 118256, ends 59128, 103474, 147820
    three = masked_shares(88_692 / 177_384, EomtSettings(blocks=3))
    assert three == pytest.approx([0, 0.5**0.9, 1], abs=1e-9)


@BACKBONES
@torch.no_grad()
def test_draws_are_those_of_each_image(backbone) -> None:
    """Any division of a batch gives the same predictions, and torch's generator is not used."""
    network = eomt(backbone, drop_path=0.5).double().train()
    network.anneal(0.2)
    images = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    state = torch.get_rng_state()
    whole = network(images, keyed_draw(dtype=torch.float64))
    alone = [network(images[i : i + 1], keyed_draw(i, torch.float64)) for i in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    for i, one in enumerate(alone):
        parts = whole.class_logits[:, i], whole.mask_embeddings[:, i], whole.mask_features[i]
        for a, b in zip(parts, (one.class_logits[:, 0], one.mask_embeddings[:, 0],
                                one.mask_features[0]), strict=True):  # fmt: skip
            assert (a - b).abs().max() < 1e-10
    network.anneal(0)
    masked = network(images, keyed_draw(dtype=torch.float64))
    assert not torch.allclose(masked.class_logits[-1], whole.class_logits[-1])


@torch.no_grad()
def test_a_masked_query_attends_inside_its_mask_and_a_free_one_everywhere() -> None:
    network = eomt().eval()
    network.masked_decoder.queries = 2
    features = torch.zeros(1, 2, 8, 8)
    features[:, 0, :, :4], features[:, 1] = 1, 1  # channel 0 is the left half
    embeddings = torch.tensor([[[2.0, -1.0], [2.0, -1.0]]])
    part = Part(torch.zeros(1, 2, 6), embeddings, features)
    permitted = network._permitted(part, torch.tensor([[False, True]]), 2 + 5 + 4)[0, 0]
    assert permitted[0].tolist() == [True] * 7 + [True, False, True, False]
    assert permitted[1:].all()


def test_the_share_is_part_of_the_state_and_scores_need_no_draw() -> None:
    network = eomt()
    network.anneal(0.2)
    twin = eomt().eval()
    twin.load_state_dict(network.state_dict())
    assert twin._shares == pytest.approx([0.5**0.9, 1])
    free = [twin._free(0, 2, torch.device("cpu"), None) for _ in range(2)]
    assert free[0].tolist() == free[1].tolist() == [[False] * 4 + [True] * 3] * 2
    images = normalize(torch.randint(256, (1, 3, *SIZE), dtype=torch.uint8))
    with torch.no_grad():
        assert len(twin(images).class_logits) == 3
        twin.anneal(1)
        assert len(twin(images).class_logits) == 1


def test_joined_predictions_have_the_products_of_each() -> None:
    parts = [
        Part(torch.randn(2, 3, 4), torch.randn(2, 3, 8), torch.randn(2, 8, 5, 6)) for _ in range(3)
    ]
    found = joined(parts)
    for i, part in enumerate(parts):
        expected = part.embeddings @ part.features.flatten(2)
        product = found.mask_embeddings[i] @ found.mask_features.flatten(2)
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-5)


@BACKBONES
def test_every_parameter_learns_with_the_criterion(backbone) -> None:
    network = eomt(backbone, checkpoint_activations=True).train()
    images, targets = torch.randn(2, 3, *SIZE), boxes(SIZE, [2, 3], CLASSES)
    settings, draw = CriterionSettings(points=64), keyed_draw()
    totals = normalizers(targets.categories, QUERIES, settings)
    losses = Criterion(settings)(network(images, draw), targets, draw, totals)
    assert len(losses) == 3 * 3
    sum(losses.values()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@BACKBONES
def test_parts_and_layers(backbone) -> None:
    network = eomt(backbone, freeze=["backbone.stem", "backbone.blocks.0", "upscale"])
    parts = {part_of(name).name for name, p in network.named_parameters() if p.requires_grad}
    assert parts == {"backbone", "backbone.blocks.1", "backbone.blocks.2", "masked_decoder"}
    layer_of, last = layers(network.backbone)
    assert (last, {*layer_of.values()}) == (3, {0, 1, 2, 3, 4})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "swin_tiny"}, r"backbone=swin_tiny with head=eomt; choose a plain ViT"),
        ({"eomt": EomtSettings()}, r"model\.eomt\.blocks=4: model\.backbone=dinov3_vit has only 3"),
        ({"head": "eomd"}, r"head=eomd; choose one of mask2former, eomt"),
    ],
)
def test_networks_that_cannot_be_built(changes, message) -> None:
    fields = {"backbone": "dinov3_vit", "backbone_config": TINY_BACKBONES["dinov3_vit"]}
    with pytest.raises(ValueError, match=message):
        build(ModelSettings(**({"head": "eomt"} | fields | changes)), CLASSES)


def test_a_schedule_that_is_refused() -> None:
    with pytest.raises(SettingError, match=r"anneal_span=0\.5 does not fit between"):
        EomtSettings(anneal_start=0.4, anneal_span=0.5)


@pytest.mark.slow
@torch.no_grad()
def test_the_exported_program_computes_the_same() -> None:
    network = eomt().eval()
    network.anneal(0.6)
    segmenter = Segmenter(network, "panoptic", [True] * CLASSES, SegmentSettings())
    program = trace(segmenter).module()
    pixels = torch.randint(256, (2, 3, 70, 130), dtype=torch.uint8)
    for a, b in zip(program(pixels), segmenter(pixels), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert isinstance(network(torch.zeros(1, 3, *SIZE)), Predictions)
