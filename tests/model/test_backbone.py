"""Backbones: shapes, normalisation variants, stochastic depth, weights from a folder."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from model.backbone import Backbone, DropPath
from model.norms import FrozenBatchNorm2d
from tests.model.samples import keyed_draw, tiny_settings

TINY_RESNET = tiny_settings().backbone_config
TINY_SWIN = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}


@pytest.mark.parametrize(
    ("name", "config"), [("resnet", TINY_RESNET), ("swin", TINY_SWIN)], ids=["resnet", "swin"]
)
def test_features_by_stride(name: str, config: dict) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, config).eval()
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 64, 96))
    assert backbone.channels == {4: 16, 8: 32, 16: 64, 32: 128}
    shapes = {stride: tuple(x.shape) for stride, x in features.items()}
    assert shapes == {
        s: (2, channels, 64 // s, 96 // s) for s, channels in backbone.channels.items()
    }


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("frozen_batch", FrozenBatchNorm2d), ("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)],
)
def test_normalisation_variants(norm: str, kind: type) -> None:
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
    path = DropPath(0.25)
    path.uniform = torch.tensor([0.1, 0.25, 0.9])
    x = torch.ones(3, 2, 2)
    assert path(x)[:, 0, 0].tolist() == pytest.approx([0, 4 / 3, 4 / 3])
    assert torch.equal(path.eval()(x), x)


def test_swin_drops_both_branches_at_linear_rates() -> None:
    backbone = Backbone("swin", TINY_SWIN, drop_path=0.4)
    rates = [path.rate for path in backbone.drop_paths]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])
    block = backbone.body.swin.encoder.layers[3].blocks[0]
    assert [block.drop_path, block.mlp.drop_path] == list(backbone.drop_paths)[-2:]
    x = torch.randn(2, 16, 128)
    for path in (block.drop_path, block.mlp.drop_path):
        path.uniform = torch.tensor([0.0, 1.0])
    out = block(x, (4, 4), always_partition=True)[0]
    assert torch.equal(out[0], x[0])  # both branches gone
    assert not torch.equal(out[1], x[1])


def test_stochastic_depth_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    backbone = Backbone("swin", TINY_SWIN, drop_path=0.5)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        together = backbone(images, keyed_draw())[32]
        alone = backbone(images[1:], keyed_draw(offset=1))[32]
        free = backbone(images)[32]
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(together, free)


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_weights_from_a_folder(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    if name == "resnet":
        config = TINY_RESNET
        classifier = ResNetForImageClassification(ResNetConfig(**config))
    else:
        config = TINY_SWIN
        classifier = SwinForImageClassification(SwinConfig(**config))
    classifier.save_pretrained(tmp_path)
    body = Backbone(name, config, weights=str(tmp_path)).body
    images = torch.randn(1, 3, 256, 256)  # the classifier shrinks windows on smaller maps
    with torch.no_grad():
        body.eval()
        theirs = classifier.eval().base_model(images, output_hidden_states=True)
        stages = body(images, output_hidden_states=True).hidden_states
    # Swin's own hidden states come after each stage's downsampling: the last stage has none
    expected = theirs.reshaped_hidden_states[-1] if name == "swin" else theirs.hidden_states[-1]
    torch.testing.assert_close(stages[-1], expected, rtol=0, atol=1e-4)

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
        ({"name": "resnet18"}, r"model\.backbone='resnet18'.*resnet50"),
        ({"name": "resnet", "norm": "layer"}, r"model\.norm='layer'.*group"),
        ({"name": "swin_tiny", "norm": "group"}, r"model\.norm='group'.*swin_tiny"),
        ({"name": "resnet", "overrides": {"depth": [1]}}, r"backbone_config\.depth .*depths"),
        ({"name": "resnet", "overrides": {"depths": [1, 1]}}, r"depths=\[1, 1\]"),
    ],
)
def test_wrong_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(**arguments)


def test_group_norm_standardises_filters():
    """Filters act with mean 0 and norm 1, whatever their own scale and offset."""
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
