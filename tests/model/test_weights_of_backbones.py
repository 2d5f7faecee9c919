"""ImageNet weights of every supported library fill the backbone and leave the rest unchanged."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.families import BACKBONES
from model.mask2former import Mask2Former
from model.weights.load import fit_backbone, load, load_backbone
from tests.model.samples import TINY_BACKBONES, tiny_settings
from tests.model.test_backbone import CLASSIFIERS
from tests.model.test_weights import K, assert_same, build, official, pickled, settings_of

HEAD = ("pixel_decoder.", "masked_decoder.")


def torchvision_names(names: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the weights of a ResNet under torchvision's names, given detectron2's."""
    renamed = {}
    for name, array in names.items():
        name = name.removeprefix("backbone.").replace("stem.", "")
        for stage in range(2, 6):
            name = name.replace(f"res{stage}.", f"layer{stage - 1}.")
        name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        for k in (1, 2, 3):
            name = name.replace(f"conv{k}.norm", f"bn{k}")
        renamed[name] = torch.from_numpy(array)
    return renamed


def test_imagenet_resnets_fill_the_backbone_alone(tmp_path: Path) -> None:
    settings = settings_of("resnet")
    model = build(settings, seed=0)
    names = {n: x for n, x in official(model, settings).items() if n.startswith("backbone.")}
    bare = {name.removeprefix("backbone."): array for name, array in names.items()}
    fc = {"stem.fc.weight": np.zeros((1000, 40), np.float32)}
    converted = pickled(tmp_path / "R-50.pkl", bare | fc, matching_heuristics=True)
    tensors = torchvision_names(names)
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias"} <= tensors.keys()
    tensors["fc.weight"] = torch.zeros(1000, 40)
    tensors["bn1.num_batches_tracked"] = torch.tensor(3)
    torch.save(tensors, tmp_path / "resnet50.pth")
    for path, unused in ((converted, 1), (tmp_path / "resnet50.pth", 2)):
        twin, untouched = build(settings, seed=1), build(settings, seed=1)
        loaded = load(twin, path)
        assert len(loaded.unused) == unused
        assert len(loaded.state) == len(model.backbone.state_dict())
        assert_same(model, twin, but=HEAD)
        assert_same(untouched, twin, but=("backbone.",))


def test_a_file_of_pretrained_weights_is_a_backbone_with_its_hash(tmp_path: Path) -> None:
    """torch.hub names a file after the first digits of its sha256."""
    settings = settings_of("resnet")
    model, twin = build(settings, seed=0), build(settings, seed=1)
    names = {n: x for n, x in official(model, settings).items() if n.startswith("backbone.")}
    torch.save(torchvision_names(names), tmp_path / "file.pth")
    digest = hashlib.sha256((tmp_path / "file.pth").read_bytes()).hexdigest()
    path = tmp_path / f"resnet50-{digest[:8]}.pth"
    shutil.copy(tmp_path / "file.pth", path)
    loaded = load_backbone(twin, path)
    assert loaded.kind == "a torchvision backbone"
    assert_same(model, twin, but=HEAD)
    other = tmp_path / "resnet50-0676ba61.pth"
    shutil.copy(path, other)
    begins = rf"its sha256 begins with {digest[:8]}, and not with 0676ba61 as its name says"
    with pytest.raises(ValueError, match=rf"model\.weights=.*0676ba61\.pth: {begins}"):
        fit_backbone(twin, other)
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"model\.weights=.*whole\.pth: .* more than a backbone"):
        fit_backbone(twin, tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"model\.weights=.*nothing\.pth: cannot be read"):
        fit_backbone(twin, tmp_path / "nothing.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_imagenet_swins_fill_the_backbone_alone(suffix: str, tmp_path: Path) -> None:
    """Both formats are loaded: Microsoft's `.pth`, and the `.pkl` of detectron2's converter."""
    settings = settings_of("swin")
    model = build(settings, seed=0)
    tensors = {
        name.removeprefix("backbone."): torch.from_numpy(array)
        for name, array in official(model, settings).items()
        if name.startswith("backbone.") and not name.startswith("backbone.norm")
    }
    tensors |= {
        "norm.weight": torch.ones(64),
        "head.weight": torch.zeros(1000, 64),
        "layers.1.blocks.1.attn_mask": torch.zeros(4, 16, 16),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
    }
    path = tmp_path / f"swin{suffix}"
    if suffix == ".pth":
        torch.save({"model": tensors}, path)
    else:
        pickled(path, tensors, matching_heuristics=True)
    twin, untouched = build(settings, seed=1), build(settings, seed=1)
    loaded = load(twin, path)
    assert len(loaded.unused) == 4
    output_norms = "backbone.body.hidden_states_norms."
    assert_same(model, twin, but=(*HEAD, output_norms))
    assert_same(untouched, twin, but=tuple(sorted({n[:18] for n in loaded.state})))
    assert sum(name.startswith(output_norms) for name in loaded.fresh) == 8


@pytest.mark.parametrize("backbone", CLASSIFIERS)
def test_transformers_classifiers_fill_the_backbone_alone(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    family, fields = BACKBONES[backbone]
    classifier = CLASSIFIERS[backbone](family.config(**fields | TINY_BACKBONES[backbone]))
    classifier.save_pretrained(tmp_path)
    tiny = tiny_settings(
        backbone=backbone, backbone_config=TINY_BACKBONES[backbone], norm="frozen_batch"
    )
    expected = Mask2Former(replace(tiny, weights=str(tmp_path)), K)
    twin = build(tiny, seed=1)
    loaded = load(twin, tmp_path)
    assert loaded.kind == "a transformers backbone"
    new = ("backbone.body.hidden_states_norms.", "backbone.pyramid.")
    assert {name.startswith((*HEAD, *new)) for name in loaded.fresh} == {True}
    assert_same(expected, twin, but=(*HEAD, *new))
