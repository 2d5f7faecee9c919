"""Our forward pass agrees with that of transformers, whose weights are imported or exported."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

from model import masked_decoder
from model.criterion import CriterionSettings
from model.mask2former import Mask2Former, ModelSettings
from model.masked_decoder import MaskedDecoderSettings
from model.pixel_decoder import PixelDecoderSettings
from model.weights.export import save_transformers, to_detectron2
from model.weights.load import load
from tests.model.samples import TINY_BACKBONES
from tests.parity.samples import assert_close, logits, randomize

NUM_CLASSES, QUERIES = 7, 30
STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet50": ResNetConfig(out_features=STAGES),
    "swin_tiny": SwinConfig(out_features=STAGES),
    "swin_base": SwinConfig(
        out_features=STAGES,
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        image_size=384,
    ),
}


def theirs_in_ours(backbone: str, folder: Path) -> tuple:
    """Return a network of transformers, and ours with the weights that transformers saved."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=BACKBONES[backbone], num_labels=NUM_CLASSES, num_queries=QUERIES
    )
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    randomize(theirs)
    theirs.save_pretrained(folder)
    ours = Mask2Former(ModelSettings(backbone=backbone, queries=QUERIES), NUM_CLASSES).eval()
    loaded = load(ours, folder)
    assert loaded.kind == "a transformers checkpoint"
    assert loaded.fresh == []
    return theirs, ours


def ours_in_theirs(backbone: str, folder: Path) -> tuple:
    """Return the network that transformers loads from our export, and ours."""
    torch.manual_seed(0)
    settings = ModelSettings(backbone=backbone, queries=QUERIES)
    ours = Mask2Former(settings, NUM_CLASSES).eval()
    randomize(ours)
    labels = [f"class {i}" for i in range(NUM_CLASSES)]
    save_transformers(folder, ours, settings, CriterionSettings(), labels)
    theirs, info = Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values())
    assert list(theirs.config.id2label.values()) == labels
    return theirs.eval(), ours


def their_logits(
    model: Mask2FormerForUniversalSegmentation, images: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the class logits and the mask logits of every prediction of transformers."""
    output = model(images, output_auxiliary_logits=True)
    predictions = [*output.auxiliary_logits, output]
    return (
        [p["class_queries_logits"] for p in predictions],
        [p["masks_queries_logits"] for p in predictions],
    )


@pytest.mark.parametrize("pair", [theirs_in_ours, ours_in_theirs])
@pytest.mark.parametrize(
    "backbone", ["resnet50", "swin_tiny", pytest.param("swin_base", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_logits(backbone: str, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits agree to 1e-8 in float64 and to 1e-4 in float32.

    In float32, predictions after the first are compared with the attention masks of transformers,
    because one pixel that rounds to the other side of 0.5 changes every later prediction.
    """
    theirs, ours = pair(backbone, tmp_path)
    images = torch.randn(1, 3, 96, 128)
    forbidden = []
    predictor = theirs.model.transformer_module.decoder.mask_predictor
    hook = predictor.register_forward_hook(lambda *call: forbidden.append(call[2][1]))
    expected = their_logits(theirs, images)
    hook.remove()
    assert_close(logits(ours, images), expected, 1e-4, predictions=1)

    permitted = iter([~mask[None, :1] for mask in forbidden])  # [1, 1, Q, pixels]

    def attention_mask(_: Tensor) -> Tensor:
        mask = next(permitted)
        return mask | ~mask.any(-1, keepdim=True)

    with monkeypatch.context() as patch:
        patch.setattr(masked_decoder, "attention_mask", attention_mask)
        assert_close(logits(ours, images), expected, 1e-4)

    theirs, ours, images = theirs.double(), ours.double(), images.double()
    assert_close(logits(ours, images), their_logits(theirs, images), 1e-8)


def small(backbone: str) -> tuple[ModelSettings, Mask2Former]:
    """Return the settings of a small network and the network."""
    settings = ModelSettings(
        backbone=backbone,
        backbone_config=TINY_BACKBONES[backbone],
        queries=20,
        pixel_decoder=PixelDecoderSettings(layers=1, feedforward=16),
        masked_decoder=MaskedDecoderSettings(layers=2, feedforward=16),
    )
    torch.manual_seed(0)
    model = Mask2Former(settings, NUM_CLASSES).eval()
    randomize(model)
    return settings, model


@pytest.mark.parametrize("backbone", ["swinv2", "convnext"])
@torch.no_grad()
def test_other_families_are_exported_and_read(backbone: str, tmp_path: Path) -> None:
    settings, ours = small(backbone)
    labels = [f"class {i}" for i in range(NUM_CLASSES)]
    save_transformers(tmp_path, ours, settings, CriterionSettings(), labels)
    twin = Mask2Former(settings, NUM_CLASSES)
    assert load(twin, tmp_path).fresh == []
    assert all(torch.equal(x, twin.state_dict()[name]) for name, x in ours.state_dict().items())
    theirs, info = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    images = torch.randn(1, 3, 96, 160, dtype=torch.float64)
    expected = their_logits(theirs.eval().double(), images)
    assert_close(logits(ours.double(), images), expected, 1e-8)


def test_networks_that_other_implementations_lack_are_refused(tmp_path: Path) -> None:
    settings, vit = small("dinov3_vit")
    with pytest.raises(
        ValueError, match=r"model\.backbone=dinov3_vit: transformers has no pyramid"
    ):
        save_transformers(tmp_path / "out", vit, settings, CriterionSettings(), ["a"] * NUM_CLASSES)
    assert not (tmp_path / "out").exists()
    for backbone in ("dinov3_vit", "swinv2", "convnext"):
        settings, model = small(backbone)
        with pytest.raises(ValueError, match=rf"model\.backbone={backbone}: the paper's code"):
            to_detectron2(model, settings, CriterionSettings())


@torch.no_grad()
def test_swin_tiny_features_memory_and_logits(tmp_path: Path) -> None:
    """Every intermediate result agrees to 1e-5 of its norm in float32."""
    theirs, ours = theirs_in_ours("swin_tiny", tmp_path)
    images = torch.randn(1, 3, 64, 96)
    expected = theirs(images, output_hidden_states=True)
    features = ours.backbone(images)
    memory, mask_features = ours.pixel_decoder(features)
    classes, masks = logits(ours, images)
    pairs = [
        *zip(features.values(), expected.encoder_hidden_states, strict=True),
        *zip(memory, expected.pixel_decoder_hidden_states, strict=True),
        (mask_features, expected.pixel_decoder_last_hidden_state),
        (classes[-1], expected.class_queries_logits),
        (masks[-1], expected.masks_queries_logits),
    ]
    for a, b in pairs:
        assert (a - b).norm() < 1e-5 * b.norm()
