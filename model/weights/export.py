"""Export weights to the formats of transformers and of the paper's code."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from model.criterion import CriterionSettings
from model.families import BACKBONES, RESNET, SWIN
from model.mask2former import Mask2Former, ModelSettings
from model.network import Network
from model.norms import group_norm
from model.weights.names import DETECTRON2, TRANSFORMERS

# Groups of the pixel decoder's norms, and its sampling points. Both are constants in transformers
# and in the paper's code.
GROUPS, POINTS = 32, 4
_UNUSED = "swin.layernorm."  # a norm of transformers whose output is not used


def to_detectron2(
    model: Network, settings: ModelSettings, criterion: CriterionSettings
) -> dict[str, np.ndarray]:
    """Return the network's weights under the names of the paper's code.

    A pickle of {"model": …, "__author__": …} around them is a file that detectron2 loads.

    Raises:
        ValueError: The paper's code cannot compute this network. The text names the setting or the
            tensors.
    """
    _check(settings)
    if BACKBONES[settings.backbone][0] not in (RESNET, SWIN):
        raise ValueError(
            f"model.backbone={settings.backbone}: the paper's code supports only ResNet and Swin"
        )
    named = DETECTRON2.from_ours(model.state_dict())
    named["criterion.empty_weight"] = _class_weights(model, criterion)
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def save_transformers(
    folder: Path,
    model: Network,
    settings: ModelSettings,
    criterion: CriterionSettings,
    labels: list[str],
) -> None:
    """Write config.json and model.safetensors for `Mask2FormerForUniversalSegmentation`.

    Args:
        folder: The folder to write to.
        model: The network.
        settings: The network's settings.
        criterion: The settings of the loss, which are written to the config.
        labels: Name of each class.

    Raises:
        ValueError: transformers cannot compute this network. The text names the setting or the
            tensors.
    """
    _check(settings)
    assert isinstance(model, Mask2Former)
    config = transformers_config(model, settings, criterion, labels)
    with torch.device("meta"):
        peer = Mask2FormerForUniversalSegmentation(config)
    peer.load_state_dict(transformers_state(model, criterion, peer), assign=True)
    peer.save_pretrained(folder)


def transformers_config(
    model: Mask2Former, settings: ModelSettings, criterion: CriterionSettings, labels: list[str]
) -> Mask2FormerConfig:
    """Return the config with which transformers builds this network and trains it with this loss.

    Raises:
        ValueError: transformers does not support a setting, which the text names.
    """
    _check(settings)
    if model.backbone.pyramid is not None:
        raise ValueError(
            f"model.backbone={settings.backbone}: transformers has no pyramid for a plain ViT"
        )
    pixel, masked = settings.pixel_decoder, settings.masked_decoder
    if pixel.heads != masked.heads:
        raise ValueError(
            f"model.pixel_decoder.heads={pixel.heads} and model.masked_decoder.heads="
            f"{masked.heads}: transformers uses the same number of heads in both"
        )
    return Mask2FormerConfig(
        backbone_config=model.backbone.body.config,
        num_queries=settings.queries,
        hidden_dim=settings.dim,
        feature_size=settings.dim,
        mask_feature_size=settings.dim,
        num_attention_heads=masked.heads,
        encoder_layers=pixel.layers,
        encoder_feedforward_dim=pixel.feedforward,
        decoder_layers=masked.layers + 1,  # transformers counts predictions, not layers
        dim_feedforward=masked.feedforward,
        class_weight=criterion.class_weight,
        mask_weight=criterion.mask_weight,
        dice_weight=criterion.dice_weight,
        no_object_weight=criterion.no_object_weight,
        train_num_points=criterion.points,
        oversample_ratio=criterion.oversample,
        importance_sample_ratio=criterion.importance,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )


def transformers_state(
    model: Mask2Former, criterion: CriterionSettings, peer: Mask2FormerForUniversalSegmentation
) -> dict[str, Tensor]:
    """Return this network's weights as a state dict of transformers.

    Args:
        model: The network.
        criterion: The settings of the loss, whose class weights are part of the state.
        peer: The network that transformers builds from `transformers_config`.

    Raises:
        ValueError: The tensors differ in name or shape. The text lists those that do.
    """
    named = TRANSFORMERS.from_ours(model.state_dict())
    named["criterion.empty_weight"] = _class_weights(model, criterion)
    for name, tensor in peer.state_dict().items():
        if name.endswith("num_batches_tracked") and name not in named:  # not kept by frozen norms
            named[name] = torch.zeros((), dtype=torch.long)
        elif f"{_UNUSED}weight" in name:
            named[name] = torch.ones(tensor.shape)
        elif f"{_UNUSED}bias" in name:
            named[name] = torch.zeros(tensor.shape)
    shapes = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    unlike = {n for n in shapes.keys() | named.keys()
              if n not in shapes or n not in named or named[n].shape != shapes[n]}  # fmt: skip
    if unlike:
        raise ValueError(
            f"transformers' network differs in {len(unlike)} tensors: {', '.join(sorted(unlike))}"
        )
    return named


def _check(settings: ModelSettings) -> None:
    """Raise ValueError for settings with which both other implementations compute differently."""
    if settings.head != "mask2former":
        raise ValueError(f"model.head={settings.head}: only Mask2Former is exported as weights")
    if settings.norm == "group":
        raise ValueError(
            "model.norm=group: other implementations cannot load a network with these norms"
        )
    if settings.pixel_decoder.points != POINTS:
        raise ValueError(
            f"model.pixel_decoder.points={settings.pixel_decoder.points}: other implementations "
            f"use {POINTS} points"
        )
    if group_norm(settings.dim).num_groups != GROUPS:
        raise ValueError(
            f"model.dim={settings.dim}: this network normalizes the pixel decoder in "
            f"{group_norm(settings.dim).num_groups} groups, other implementations in {GROUPS}; "
            "train with model.dim=256"
        )


def _class_weights(model: Network, criterion: CriterionSettings) -> Tensor:
    """Return the weights of the classes in the cross entropy, float32 [K + 1]."""
    weights = torch.ones(model.masked_decoder.class_head.out_features)
    weights[-1] = criterion.no_object_weight
    return weights
