"""The parts of networks: their names, and what freezing them saves."""

from collections import Counter

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from model.mask2former import Mask2Former, ModelSettings, normalize
from model.parts import layers, part_of
from model.settings import SettingError

SMALL = {
    "resnet": {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 8, 16, 16], "embedding_size": 8,
               "layer_type": "basic"},
    "swin": {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2]},
    "swinv2": {"embed_dim": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2]},
    "convnext": {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 8, 16, 16]},
    "dinov3_vit": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
                   "num_hidden_layers": 3},
}  # fmt: skip
STAGES = [
    *("backbone.stem", "backbone.stages.0.blocks.0", "backbone.stages.1.blocks.0"),
    *("backbone.stages.1.blocks.1", "backbone.stages.2.blocks.0", "backbone.stages.3.blocks.0"),
]
REDUCTIONS = {  # the stages that own the layers between stages
    "swin": (0, 1, 2), "swinv2": (0, 1, 2), "convnext": (1, 2, 3),
}  # fmt: skip


def network(backbone: str, *freeze: str) -> Mask2Former:
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone, SMALL[backbone], drop_path=0.0, queries=5, dim=16, freeze=list(freeze)
    )
    return Mask2Former(settings, 3)


@pytest.mark.parametrize("backbone", SMALL)
def test_every_parameter_has_a_part(backbone):
    found = Counter(part_of(name).name for name, _ in network(backbone).named_parameters())
    expected = {*STAGES} if backbone != "dinov3_vit" else {"backbone.stem", "backbone"}
    expected |= {f"backbone.blocks.{i}" for i in range(3)} if backbone == "dinov3_vit" else set()
    expected |= {f"backbone.stages.{stage}.downsample" for stage in REDUCTIONS.get(backbone, ())}
    expected |= {"pixel_decoder", "masked_decoder"}
    expected |= {"neck"} if backbone in ("swin", "convnext", "dinov3_vit") else set()
    assert found.keys() == expected
    layer_of, last = layers(network(backbone).backbone)
    assert {0, *range(1, last + 1)} <= {*layer_of.values()}


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (["backbone"], {"neck", "pixel_decoder", "masked_decoder"}),
        (["backbone", "neck", "pixel_decoder"], {"masked_decoder"}),
        (["backbone.stages"], {"backbone.stem", "neck", "pixel_decoder", "masked_decoder"}),
        (
            ["backbone.stem", "backbone.stages.0", "backbone.stages.1.blocks.1"],
            {
                *STAGES[2:3], *STAGES[4:], "neck", "pixel_decoder", "masked_decoder",
                "backbone.stages.1.downsample", "backbone.stages.2.downsample",
            },
        ),
    ],
)  # fmt: skip
def test_frozen_parts_are_those_named(names, trained):
    net = network("swin", *names)
    assert {part_of(n).name for n, p in net.named_parameters() if p.requires_grad} == trained


def test_wrong_parts_are_refused_with_the_nearest():
    for name, message in {
        "backbone.stage.0": r"no part 'backbone\.stage\.0'; did you mean backbone\.stages\.0\?",
        "backbone.stages.4": "did you mean backbone.stages.",
        "backbone.s": "no part 'backbone.s'",
        "zzz": "known: backbone, backbone.stages, .*, masked_decoder, .*pixel_decoder",
    }.items():
        with pytest.raises(ValueError, match=rf"model\.freeze: .*{message}"):
            network("resnet", name)
    with pytest.raises(ValueError, match="leaves nothing to train"):
        network("resnet", "backbone", "pixel_decoder", "masked_decoder")
    with pytest.raises(SettingError, match="norm=batch"):
        ModelSettings("resnet50", norm="batch", freeze=["backbone.stem"])


def cost(net: Mask2Former) -> tuple[int, int]:
    """Return the bytes that the backbone saves for backward, and the FLOPs of backward."""
    images = normalize(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    weights = {parameter.data_ptr() for parameter in net.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = net.backbone(images)
    del kept
    loss = sum(part.square().mean() for part in net(images))
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return sum(saved.values()), backward.get_total_flops()


@pytest.mark.parametrize("backbone", ["resnet", "swin", "dinov3_vit"])
def test_what_is_frozen_costs_no_backward(backbone):
    """A frozen backbone saves no activation, and frozen first stages save fewer."""
    first = "backbone.blocks.0" if backbone == "dinov3_vit" else "backbone.stages.0"
    all_parts = ["backbone"] if backbone == "resnet" else ["backbone", "neck"]
    choices = ((), ("backbone.stem", first), all_parts)
    whole, half, none = (cost(network(backbone, *names)) for names in choices)
    assert none[0] == 0
    assert 0 < half[0] < whole[0]
    assert none[1] < half[1] < whole[1]
    with FlopCounterMode(display=False) as flops:
        network(backbone).backbone(torch.zeros(2, 3, 64, 64))
    # Backward takes twice the operations of forward, except in the stem, whose input is an image.
    assert whole[1] - none[1] > flops.get_total_flops()
