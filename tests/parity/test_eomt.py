"""EoMT agrees with that of transformers, with learned and with rotary positions."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

from model import segment
from model.heads import build
from model.network import Network
from model.network_settings import SegmentSettings
from model.segment import ImagePrediction
from model.weights.load import fit, load
from model.weights.transformers_settings import read_settings
from tests.parity.samples import randomize

SIZE, QUERIES = 64, 12
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": SIZE,
    "num_blocks": 3, "num_queries": QUERIES,
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", ["learned", "rotary"])


def peer(kind: str, folder: Path, classes: int, share: float):
    """Return a network of transformers, whose blocks all mask this share, and save it."""
    torch.manual_seed(0)
    if kind == "learned":
        model = EomtForUniversalSegmentation(EomtConfig(**SIZES, num_labels=classes))
    else:
        config = EomtDinov3Config(**SIZES, num_labels=classes, intermediate_size=48)
        model = EomtDinov3ForUniversalSegmentation(config)
    randomize(model)
    model.attn_mask_probs.fill_(share)
    model.save_pretrained(folder)
    if kind == "learned":  # its mask is always float32, which torch does not add to float64
        for layer in model.layers:
            layer.register_forward_pre_hook(_with_mask_of_same_type)
    return model.eval()


def _with_mask_of_same_type(_: torch.nn.Module, inputs: tuple[Tensor, Tensor | None]):
    x, mask = inputs
    return x, None if mask is None else mask.to(x.dtype)


def ours(folder: Path, classes: int) -> Network:
    model = build(read_settings(folder), classes).eval()
    assert load(model, folder).fresh == []
    return model


def segmentation(task: str, prediction: ImagePrediction, things: list[bool]) -> list[Tensor]:
    settings = SegmentSettings(object_threshold=0.0, overlap_threshold=0.1, detections=20)
    if task == "semantic":
        return [segment.semantic(prediction)]
    if task == "panoptic":
        ids, rows = segment.panoptic(prediction, things, settings)
        return [ids, torch.tensor([row["category"] for row in rows])]
    found = segment.instances(prediction, things, settings)
    return [found["categories"], torch.stack(list(found["masks"]))]


@pytest.mark.parametrize(("task", "classes"), [("panoptic", 7), ("instance", 5), ("semantic", 9)])
@pytest.mark.parametrize("share", [0.0, 1.0])
@KINDS
@torch.no_grad()
def test_logits_and_segmentations(kind, share, task, classes, tmp_path):
    """Logits agree to 1e-5 of the largest in float32, and to 1e-10 in float64."""
    theirs, model = peer(kind, tmp_path, classes, share), ours(tmp_path, classes)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        expected = theirs.to(dtype)(images.to(dtype))
        found = model.to(dtype)(images.to(dtype))
        assert len(found.class_logits) == (1 if share == 0 else 4)
        masks = found.mask_embeddings[-1] @ found.mask_features.flatten(2)
        masks = masks.unflatten(2, found.mask_features.shape[2:])
        for a, b in (
            (found.class_logits[-1], expected.class_queries_logits),
            (masks, expected.masks_queries_logits),
        ):
            assert b.std() > 0.05
            assert (a - b).abs().max() < tolerance * max(1, b.abs().max())
        assert 0.01 < (masks > 0).float().mean() < 0.99
    things = [i % 2 == 0 or task == "instance" for i in range(classes)]
    sizes = (SIZE, SIZE), (50, 70)
    for image in range(2):
        own = segmentation(task, ImagePrediction.of(found, image, *sizes), things)
        logits = expected.masks_queries_logits[image].float()
        other = ImagePrediction(
            expected.class_queries_logits[image].float(), torch.eye(QUERIES), logits, *sizes
        )
        for a, b in zip(own, segmentation(task, other, things), strict=True):
            assert (a == b).float().mean() > 0.999


OFFICIAL = {  # names of transformers -> names of the paper's code, as transformers converts them
    r"embeddings\.cls_token": "encoder.backbone.cls_token",
    r"embeddings\.register_tokens": "encoder.backbone.reg_token",
    r"embeddings\.position_embeddings\.weight": "encoder.backbone.pos_embed",
    r"embeddings\.patch_embeddings\.projection": "encoder.backbone.patch_embed.proj",
    r"layers\.(\d+)\.attention\.out_proj": r"encoder.backbone.blocks.\1.attn.proj",
    r"layers\.(\d+)\.layer_scale(\d)\.lambda1": r"encoder.backbone.blocks.\1.ls\2.gamma",
    r"layers\.(\d+)\.(norm\d|mlp)": r"encoder.backbone.blocks.\1.\2",
    r"layernorm\.": "encoder.backbone.norm.",
    r"query\.": "q.",
    r"class_predictor": "class_head",
    r"upscale_block\.block\.(\d)\.conv": r"upscale.\1.conv",
    r"upscale_block\.block\.(\d)\.layernorm2d": r"upscale.\1.norm",
    r"mask_head\.fc1": "mask_head.0",
    r"mask_head\.fc2": "mask_head.2",
    r"mask_head\.fc3": "mask_head.4",
    r"attn_mask_probs": "attn_mask_probs",
}


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of transformers under the names of the paper's code."""
    named = {"network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1)}
    for name, tensor in state.items():
        if match := re.fullmatch(r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)", name):
            parts = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
            named[f"network.encoder.backbone.blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(
                parts
            )
        for old, new in OFFICIAL.items():
            if match := re.match(old, name):
                named["network." + match.expand(new) + name[match.end() :]] = tensor
    named["network.encoder.backbone.pos_embed"] = named["network.encoder.backbone.pos_embed"][None]
    return named


def test_official_names(tmp_path):
    state = peer("learned", tmp_path, 7, 0.0).state_dict()
    model = ours(tmp_path, 7)
    torch.save(official(state), tmp_path / "official.bin")
    loaded = fit(model, tmp_path / "official.bin")
    assert loaded.kind == "a checkpoint of EoMT"
    assert loaded.unused == ["network.encoder.pixel_mean [1, 3, 1, 1]"]
    assert loaded.state.keys() == model.state_dict().keys()
    assert all(torch.equal(t, loaded.state[n]) for n, t in model.state_dict().items())
