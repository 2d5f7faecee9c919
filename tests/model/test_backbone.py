"""The contract of all families of backbones, the kinds of normalization, and loading weights."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    ConvNextForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    ResNetForImageClassification,
    SwinForImageClassification,
    Swinv2ForImageClassification,
)

from model.backbone import Backbone
from model.drop_path import DropPath
from model.families import BACKBONES
from model.mask2former import Mask2Former
from model.norms import FrozenBatchNorm2d
from pipeline.step.optimizer import OptimizerSettings, parameter_groups
from tests.model.samples import TINY_BACKBONES, keyed_draw, tiny_settings

TINY_RESNET, TINY_SWIN = TINY_BACKBONES["resnet"], TINY_BACKBONES["swin"]
FAMILIES = pytest.mark.parametrize("name", TINY_BACKBONES)
DROPPING = pytest.mark.parametrize("name", [name for name in TINY_BACKBONES if name != "resnet"])


def tiny(name: str, seed: int = 0, **changes) -> Backbone:
    """Return a small backbone with random norms and scales, which start as constants."""
    torch.manual_seed(seed)
    backbone = Backbone(name, TINY_BACKBONES[name], **changes)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5 * torch.rand_like(parameter))
    return backbone


# The contract of every family


def test_every_family_is_held_to_the_contract() -> None:
    assert {family for family, _ in BACKBONES.values()} == {
        BACKBONES[name][0] for name in TINY_BACKBONES
    }


@FAMILIES
@pytest.mark.parametrize("size", [(96, 160), (32, 64)])
def test_features_by_stride(name: str, size: tuple[int, int]) -> None:
    """The sizes include feature maps with odd sides (3x5) and with one row."""
    backbone = tiny(name).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *size))
    assert tuple(features) == tuple(backbone.channels) == (4, 8, 16, 32)
    for stride, x in features.items():
        assert x.shape == (2, backbone.channels[stride], *(side // stride for side in size))
        assert x.std() > 0.01


@FAMILIES
def test_gradients_reach_every_parameter(name: str) -> None:
    """They do so in bf16 autocast too, and after inference has filled the caches."""
    backbone, images = tiny(name), torch.randn(2, 3, 96, 160)
    with torch.inference_mode():
        expected = backbone.eval()(images)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            features = backbone(images)
        for stride, x in features.items():
            assert (x - expected[stride]).norm() < 0.05 * expected[stride].norm()
        backbone.zero_grad()
        sum(x.float().square().mean() for x in features.values()).backward()
        without = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []
        assert all(p.grad.isfinite().all() for p in backbone.parameters())


@FAMILIES
def test_state_is_the_whole_function(name: str) -> None:
    """Inference is repeatable, and another network with the same state gives the same maps."""
    backbone, twin, images = tiny(name).eval(), tiny(name, seed=1).eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        first, again, other = backbone(images), backbone(images), twin(images)
        twin.load_state_dict(backbone.state_dict())
        same = twin(images)
    for stride, x in first.items():
        assert torch.equal(x, again[stride])
        assert torch.equal(x, same[stride])
        assert not torch.allclose(x, other[stride])


@FAMILIES
def test_every_parameter_is_in_one_group(name: str) -> None:
    """The body has a low learning rate, the pyramid that of the decoders; norms do not decay."""
    settings = tiny_settings(
        backbone=name, backbone_config=TINY_BACKBONES[name], norm="frozen_batch"
    )
    model = Mask2Former(settings, num_classes=5)
    groups = parameter_groups(model, OptimizerSettings(lr=1.0, backbone_lr_multiplier=0.1))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate)
    assert rate.keys() == {id(p) for p in model.parameters()}
    for key, parameter in model.named_parameters():
        assert rate[id(parameter)] == (0.1 if key.startswith("backbone.body.") else 1.0), key
    norms = [m for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.GroupNorm))]
    assert not any(decay[id(p)] for norm in norms for p in norm.parameters())
    of_positions = ("bias_table", "bias_mlp.0.weight", "logit_scale")
    positions = [p for key, p in model.backbone.named_parameters() if key.endswith(of_positions)]
    assert len(positions) == {"swin": 5, "swinv2": 10}.get(name, 0)
    assert not any(decay[id(p)] for p in positions)


@DROPPING
def test_stochastic_depth_does_not_depend_on_the_batch(name: str) -> None:
    backbone, images = tiny(name, drop_path=0.5), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        together = backbone(images, keyed_draw())[32]
        alone = backbone(images[1:], keyed_draw(offset=1))[32]
        free = backbone(images)[32]
        twin = copy.deepcopy(backbone)
        backbone(images)  # with random numbers from the global generator
        copied = twin(images, keyed_draw())[32]
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(together, free)
    assert torch.equal(copied, together)


@DROPPING
def test_drop_path_on_every_branch(name: str) -> None:
    """Rates grow linearly with the block, and a block without its branches is the identity."""
    backbone = tiny(name, drop_path=0.4)
    blocks = [module for module in backbone.body.modules() if hasattr(module, "drop_path")]
    last, branches = len(blocks) - 1, len(backbone.drop_paths) // (len(blocks) - 1)
    assert branches == (1 if name == "convnext" else 2)
    rates = [0.4 * k / last for k in range(1, len(blocks)) for _ in range(branches)]
    assert [path.rate for path in backbone.drop_paths] == pytest.approx(rates)

    passed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(block: nn.Module, inputs: tuple, output) -> None:
        passed.append((inputs[0], output[0] if isinstance(output, tuple) else output))

    blocks[-1].register_forward_hook(record)
    images = torch.randn(1, 3, 64, 64)
    kept = itertools.product((0.0, 1.0), repeat=branches)
    with torch.no_grad():
        for columns in kept:
            draw = torch.tensor([1.0] * (len(rates) - branches) + list(columns))
            backbone(images, lambda image, purpose, shape, draw=draw: draw.expand(shape))
    changes = [out - x for x, out in passed]
    assert torch.equal(passed[0][0], passed[0][1])
    for one, other in itertools.combinations(changes, 2):
        assert (one - other).abs().max() > 1e-3


# Single families


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("frozen_batch", FrozenBatchNorm2d), ("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)],
)
def test_normalization_variants(norm: str, kind: type) -> None:
    backbone = Backbone("resnet", TINY_RESNET, norm=norm)
    kinds = {type(m) for m in backbone.modules() if hasattr(m, "eps")}
    assert kinds == {kind}
    frozen = [name for name, _ in backbone.named_buffers() if name.endswith("normalization.weight")]
    assert bool(frozen) == (norm == "frozen_batch")


def test_sync_batch_falls_back_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match=r"model\.norm=sync_batch"):
        backbone = Backbone("resnet", TINY_RESNET, norm="sync_batch")
    backbone(torch.randn(2, 3, 64, 64))[32].sum().backward()


def test_frozen_batch_norm_is_batch_norm_in_eval() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    frozen = FrozenBatchNorm2d(5).double()
    for buffer in frozen.buffers():
        buffer.copy_(torch.rand(5) + 0.5)
    expected = F.batch_norm(
        x, frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias, eps=1e-5
    )
    torch.testing.assert_close(frozen(x), expected, rtol=0, atol=1e-12)


def test_drop_path_keeps_or_drops_whole_samples() -> None:
    path, module = DropPath(0.25), nn.Identity()
    path.uniform = torch.tensor([0.1, 0.25, 0.9])
    module.register_forward_hook(path)
    x = torch.ones(3, 2, 2)
    assert module(x)[:, 0, 0].tolist() == pytest.approx([0, 4 / 3, 4 / 3])
    assert torch.equal(module.eval()(x), x)


CLASSIFIERS = {
    "resnet": ResNetForImageClassification,
    "swin": SwinForImageClassification,
    "swinv2": Swinv2ForImageClassification,
    "convnext": ConvNextForImageClassification,
    "dinov2_vit": Dinov2WithRegistersModel,
    "dinov3_vit": DINOv3ViTModel,
}


@FAMILIES
def test_weights_from_a_folder(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    config = TINY_BACKBONES[name]
    family, fields = BACKBONES[name]
    classifier = CLASSIFIERS[name](family.config(**fields | config))
    classifier.save_pretrained(tmp_path)
    body = Backbone(name, config, weights=str(tmp_path)).body
    images = torch.randn(1, 3, 256, 256)  # Swin's classifier shrinks windows on smaller maps
    with torch.no_grad():
        body.eval()
        classifier = classifier.eval() if name.startswith("dino") else classifier.eval().base_model
        theirs = classifier(images, output_hidden_states=True)
        stages = body(images, output_hidden_states=True).hidden_states
    if name.startswith("dino"):
        ours = body(images).feature_maps[0].flatten(2).transpose(1, 2)
        expected = theirs.last_hidden_state[:, 5:]  # past the class and register tokens
    elif name.startswith("swin"):  # each stage but the last includes the next downsampling
        ours, expected = stages[-1], theirs.reshaped_hidden_states[-1]
        ours = ours if ours.ndim == 4 else ours.transpose(1, 2).view_as(expected)
    else:
        ours, expected = stages[-1], theirs.hidden_states[-1]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_weights_that_do_not_fit(name: str, tmp_path) -> None:
    config = TINY_BACKBONES[name]
    Backbone(name, config).body.save_pretrained(tmp_path)
    deeper = config | {"depths": [1, 1, 2, 3]}
    with pytest.raises(ValueError, match=r"model\.weights=.* lacks \d+ tensors"):
        Backbone(name, deeper, weights=str(tmp_path))
    wider = config | {"hidden_sizes": [16, 32, 64, 64], "embed_dim": 32}
    wider = {key: wider[key] for key in config}
    with pytest.raises(ValueError, match=r"model\.weights=.* cannot be loaded"):
        Backbone(name, wider, weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.weights=.*nowhere"):
        Backbone(name, config, weights=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet", "overrides": {"depth": [1]}}, r"backbone_config\.depth .*depths"),
        ({"name": "resnet", "overrides": {"depths": [1, 1]}}, r"depths=\[1, 1\]"),
        ({"name": "swin", "overrides": {"num_heads": [3]}}, r"backbone_config\.num_heads=\[3\]"),
        ({"name": "swin", "overrides": {"patch_size": 8}}, r"patch_size=8: strides .* need 4"),
        ({"name": "dinov3_vit", "overrides": {"patch_size": 14}}, r"patch_size=14: .* need 16"),
        ({"name": "convnext", "overrides": {"hidden_act": "foo"}}, r"'hidden_act': 'foo'} cannot"),
        ({"name": "swinv2", "overrides": {"embed_dim": "x"}}, r"'embed_dim': 'x'} cannot"),
        ({"name": "swin", "overrides": {"drop_path_rate": 1}}, r"drop_path_rate=1 is not in"),
    ],
)
def test_wrong_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(**arguments)


def test_group_norm_standardizes_filters():
    """A convolution uses filters of mean 0 and norm 1 for any scale and offset of its weights."""
    torch.manual_seed(0)
    body = Backbone("resnet", TINY_RESNET, norm="group").double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    before = body(images)
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(3).add_(0.7)
    after = body(images)
    for stride, feature in before.items():
        torch.testing.assert_close(after[stride], feature, rtol=1e-9, atol=1e-9)
    conv = next(m for m in body.modules() if isinstance(m, nn.Conv2d))
    filters = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    filters = filters / filters.square().sum((1, 2, 3), keepdim=True).sqrt()
    oracle = F.conv2d(images, filters, None, conv.stride, conv.padding)
    torch.testing.assert_close(conv(images), oracle, rtol=1e-12, atol=1e-12)
