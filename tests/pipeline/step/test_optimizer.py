"""Parameter groups: what decays and at which rate, to the element, for the published nets."""

import pytest
import torch
from torch import nn

from model.backbone import Backbone
from model.families import CONVNEXT, DINOV3_VIT, RESNET, SWIN
from model.mask2former import Mask2Former, ModelSettings
from pipeline.step.optimizer import OptimizerSettings, parameter_groups

CLASSES = 133
HEAD_NOT_DECAYED = 23_040  # norms
EMBEDDINGS = 51_968  # of 100 queries, and 512 for each more

# backbone: queries, decayed, norms, relative-position tables; head: decayed
PUBLISHED = {
    ("resnet50", "frozen_batch"): (100, 23_454_912, 0, 0, 20_453_958),
    ("resnet50", "batch"): (100, 23_454_912, 53_120, 0, 20_453_958),
    ("resnet101", "frozen_batch"): (100, 42_394_816, 0, 0, 20_453_958),
    ("resnet101", "batch"): (100, 42_394_816, 105_344, 0, 20_453_958),
    ("swin_tiny", "frozen_batch"): (100, 27_471_264, 26_112, 23_322, 19_839_558),
    ("swin_small", "frozen_batch"): (100, 48_746_400, 44_544, 47_658, 19_839_558),
    ("swin_base", "frozen_batch"): (100, 86_622_080, 59_392, 198_904, 19_962_438),
    ("swin_large", "frozen_batch"): (200, 194_813_760, 89_088, 298_356, 20_208_198),
}


def build(backbone: str, norm: str, queries: int) -> Mask2Former:
    with torch.device("meta"):
        return Mask2Former(ModelSettings(backbone, norm=norm, queries=queries), CLASSES)


def sizes(model: nn.Module, settings: OptimizerSettings) -> dict[tuple[float, float], int]:
    """Elements by (learning rate, weight decay)."""
    return {
        (group["lr"], group["weight_decay"]): sum(p.numel() for p in group["params"])
        for group in parameter_groups(model, settings)
    }


@pytest.mark.parametrize(("backbone", "norm"), PUBLISHED)
def test_11_1_groups_are_the_published_ones_to_the_element(backbone, norm):
    queries, decayed, norms, tables, head = PUBLISHED[backbone, norm]
    model = build(backbone, norm, queries)
    found = sizes(model, OptimizerSettings())
    embeddings = EMBEDDINGS + 512 * (queries - 100)
    expected = {
        (1e-5, 0.05): decayed,
        (1e-5, 0.0): norms + tables,
        (1e-4, 0.05): head,
        (1e-4, 0.0): HEAD_NOT_DECAYED + embeddings,
    }
    assert found == {key: count for key, count in expected.items() if count}
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())


def test_synchronised_batch_norm_does_not_decay():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    )
    assert sizes(model, OptimizerSettings()) == {(1e-4, 0.05): 32, (1e-4, 0.0): 16}


def names(model: nn.Module, decay: float) -> set[str]:
    by_tensor = {id(p): name for name, p in model.named_parameters()}
    return {
        by_tensor[id(p)]
        for group in parameter_groups(model, OptimizerSettings()) if group["weight_decay"] == decay
        for p in group["params"]
    }  # fmt: skip


def test_tensors_that_are_easy_to_get_wrong():
    model = build("swin_tiny", "frozen_batch", 100)
    decayed, not_decayed = names(model, 0.05), names(model, 0.0)
    assert not decayed & not_decayed
    assert "pixel_decoder.level_embed" in decayed  # a bare parameter, not an nn.Embedding
    assert "masked_decoder.class_head.bias" in decayed
    for name in ("query_feat.weight", "query_embed.weight", "level_embed.weight"):
        assert f"masked_decoder.{name}" in not_decayed
    tables = {name for name in not_decayed if name.endswith("relative_position_bias_table")}
    assert len(tables) == 12


def test_frozen_tensors_are_left_out():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    model[0].requires_grad_(False)
    assert sizes(model, OptimizerSettings()) == {(1e-4, 0.05): 12}


def test_rates_and_decay_are_settings():
    model = nn.ModuleDict(
        {"backbone": nn.Linear(2, 2), "head": nn.LayerNorm(3), "out": nn.Linear(1, 1)}
    )
    settings = OptimizerSettings(lr=0.5, weight_decay=0.25, backbone_lr_multiplier=0.5)
    assert sizes(model, settings) == {(0.25, 0.25): 6, (0.5, 0.0): 6, (0.5, 0.25): 2}


def test_only_the_backbone_itself_learns_slowly():
    """The multiplier follows the first part of a name, not any occurrence of the word."""
    model = nn.ModuleDict(
        {"backbone_adapter": nn.Linear(2, 2), "head": nn.ModuleDict({"backbone": nn.Linear(1, 1)})}
    )
    assert sizes(model, OptimizerSettings()) == {(1e-4, 0.05): 8}


def test_constants_of_the_reference():
    assert OptimizerSettings() == OptimizerSettings(
        lr=1e-4, weight_decay=0.05, backbone_lr_multiplier=0.1, clip=0.01
    )
    adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    assert adamw.defaults["betas"] == (0.9, 0.999)
    assert adamw.defaults["eps"] == 1e-8


def published_layers(backbone: Backbone) -> tuple[list[tuple[nn.Module, int]], int]:
    """Return the layer of every module of a backbone, and the number of layers.

    The rules are those of get_layer_id_for_vit (MAE), get_swin_layer (SimMIM), and
    get_num_layer_for_convnext (ConvNeXt), applied to modules. The stages of a ResNet are layers.
    """
    body = backbone.body
    if backbone.family is DINOV3_VIT:
        found = [(body.embeddings, 0), *((m, i) for i, m in enumerate(body.model.layer, 1))]
        last = len(body.model.layer)
        return [*found, (body.norm, last + 1)], last
    if backbone.family is RESNET:
        return [(body.embedder, 0), *((m, i) for i, m in enumerate(body.encoder.stages, 1))], 4
    if backbone.family is CONVNEXT:
        one, two, three, four = body.encoder.stages
        last = {9: 6, 27: 12}[len(three.layers)]
        thirds = [(block, 3 + i // 3) for i, block in enumerate(three.layers)]
        found = [(body.embeddings, 0), (one, 1), (two, 2), *thirds, (four, last)]
        found += [(three.downsampling_layer, 3), (body.hidden_states_norms, last + 1)]
        return found, last
    net = body.swin if backbone.family is SWIN else body
    found, count = [(net.embeddings, 0)], 0
    for stage in net.encoder.layers:
        for block in stage.blocks:
            count += 1
            found.append((block, count))
        if stage.downsample is not None:
            found.append((stage.downsample, count))
    if backbone.family is SWIN:
        found.append((body.hidden_states_norms, count + 1))
    return found, count


@pytest.mark.parametrize("multiplier", [1.0, 0.1])
@pytest.mark.parametrize(
    ("backbone", "last"),
    [
        *(("resnet50", 4), ("swin_tiny", 12), ("swin_large", 24), ("swinv2_tiny", 12)),
        *(("convnext_tiny", 6), ("convnext_base", 12), ("dinov3_vit_small", 12)),
    ],
)
def test_rates_by_layer_are_the_published_ones(backbone, last, multiplier):
    """The rate of layer n of L is lr·decay^(L + 1 - n), to the element."""
    model, decay = build(backbone, "frozen_batch", 10), 0.7
    settings = OptimizerSettings(lr=0.5, backbone_lr_multiplier=multiplier, layer_decay=decay)
    groups = parameter_groups(model, settings)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found, count = published_layers(model.backbone)
    assert count == last
    expected = {
        id(p): 0.5 * multiplier * decay ** (last + 1 - layer)
        for module, layer in found
        for p in module.parameters()
    }
    for name, parameter in model.named_parameters():
        is_head = not name.startswith("backbone.") or name.startswith("backbone.pyramid.")
        assert rates[id(parameter)] == pytest.approx(
            0.5 if is_head else expected[id(parameter)], rel=1e-12
        ), name
    assert (
        sizes(model, OptimizerSettings()).keys()
        == sizes(model, OptimizerSettings(layer_decay=1.0)).keys()
    )
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    plain = parameter_groups(model, OptimizerSettings())
    assert decays == {id(p): group["weight_decay"] for group in plain for p in group["params"]}
