"""The parts of a network, by which parameters are frozen and learn at different rates."""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from model.backbone import Backbone
from model.families import CONVNEXT, RESNET

_BODY = r"backbone\.body\.(?:swin\.)?"
_STEM = re.compile(_BODY + r"embed(?:der|dings)\.")
_STAGE = re.compile(_BODY + r"encoder\.(?:layers|stages)\.(\d+)\.(?:(?:blocks|layers)\.(\d+)\.)?")
_BLOCK = re.compile(_BODY + r"(?:model|encoder)\.layer\.(\d+)\.")
# What stands between a backbone and the decoders, and is in no file of pretrained weights.
_NECK = ("backbone.body.hidden_states_norms.", "backbone.pyramid.")


class Part(NamedTuple):
    """A part of a network.

    Attributes:
        name: The part, such as "backbone.stages.2.blocks.0", or "backbone.blocks.3" of a ViT.
        stage: The stage of a backbone, from 0; a ViT has one. None outside of the stages.
        block: The block of the stage, from 0. None outside of the blocks, as the layers that reduce
            the size of the maps are.
    """

    name: str
    stage: int | None = None
    block: int | None = None


def part_of(parameter: str) -> Part:
    """Return the part that a parameter of a network belongs to, by the parameter's name."""
    if _STEM.match(parameter):
        return Part("backbone.stem")
    if match := _BLOCK.match(parameter):
        return Part(f"backbone.blocks.{match[1]}", 0, int(match[1]))
    if match := _STAGE.match(parameter):
        stage = f"backbone.stages.{match[1]}"
        if match[2] is None:
            return Part(f"{stage}.downsample", int(match[1]))
        return Part(f"{stage}.blocks.{match[2]}", int(match[1]), int(match[2]))
    if parameter.startswith(_NECK):
        return Part("neck")
    return Part(parameter.split(".")[0])


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Exclude parts from training: their weights get no gradient.

    Args:
        network: The network, which is changed in place.
        names: Names of parts, or their beginnings up to a dot, such as "backbone.stages".

    Raises:
        ValueError: A name is unknown, or nothing is left to train.
    """
    parts = {name: part_of(name).name for name, _ in network.named_parameters()}
    for name in names:
        if not any(_is_within(part, name) for part in parts.values()):
            known = sorted({p.rsplit(".", depth)[0] for p in parts.values() for depth in range(4)})
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            advice = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"model.freeze: the network has no part {name!r}; {advice}")
    for name, parameter in network.named_parameters():
        if any(_is_within(parts[name], frozen) for frozen in names):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"model.freeze={list(names)} leaves nothing to train")


def _is_within(part: str, whole: str) -> bool:
    return f"{part}.".startswith(f"{whole}.")


def layers(backbone: Backbone) -> tuple[dict[str, int], int]:
    """Return the layer of every parameter of a backbone, and the number of layers, L.

    The stem is layer 0, and what follows the last layer is L + 1. Between them, a block of a ViT
    or a Swin is a layer (as in BEiT, MAE, and SimMIM), and so is a stage of a ResNet. In a
    ConvNeXt the first two stages, each three blocks of the third stage, and the last stage are one
    layer each (as in its paper's code). What halves the maps belongs to the layer before it in a
    Swin, and otherwise to the layer after it, where the public code has it.
    """
    parts = {name: part_of(f"backbone.{name}") for name, _ in backbone.named_parameters()}
    blocks = {
        (p.stage, p.block) for p in parts.values() if p.stage is not None and p.block is not None
    }
    depths = [sum(s == stage for s, _ in blocks) for stage in range(1 + max(s for s, _ in blocks))]

    def layer(part: Part) -> int:
        if part.stage is None:
            return 0 if part.name == "backbone.stem" else last + 1
        if backbone.family is RESNET:
            return part.stage + 1
        if backbone.family is CONVNEXT:
            within = (part.block or 0) // 3 if part.stage == 2 else 0
            return last if part.stage == 3 else part.stage + 1 + within
        before = sum(depths[: part.stage])
        return before + (depths[part.stage] if part.block is None else part.block + 1)

    if backbone.family is RESNET:
        last = len(depths)
    elif backbone.family is CONVNEXT:
        last = 3 + -(-depths[2] // 3)
    else:
        last = sum(depths)
    return {name: layer(part) for name, part in parts.items()}, last
