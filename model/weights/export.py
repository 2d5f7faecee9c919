"""Our weights as others load them: a folder of transformers, a file of the official code."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from model.criterion import CriterionSettings
from model.families import BACKBONES, RESNET, SWIN
from model.mask2former import Mask2Former, ModelSettings
from model.norms import group_norm
from model.weights.names import DETECTRON2, TRANSFORMERS

GROUPS, POINTS = 32, 4  # of the pixel decoder: settings here, constants in both other codes
_UNUSED = "swin.layernorm."  # a norm that transformers has and whose output goes nowhere


def to_detectron2(
    model: Mask2Former, settings: ModelSettings, criterion: CriterionSettings
) -> dict[str, np.ndarray]:
    """The network's tensors by the official names, for a pickle {"model": …, "__author__": …}.

    Raises ValueError naming the setting or the tensors that the official code does not have.
    """
    _check(settings)
    if BACKBONES[settings.backbone][0] not in (RESNET, SWIN):
        raise ValueError(
            f"model.backbone={settings.backbone}: the official code has ResNets and Swins only"
        )
    named = DETECTRON2.from_ours(model.state_dict())
    named["criterion.empty_weight"] = _class_weights(model, criterion)
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def save_transformers(
    folder: Path,
    model: Mask2Former,
    settings: ModelSettings,
    criterion: CriterionSettings,
    labels: list[str],
) -> None:
    """Write config.json and model.safetensors for `Mask2FormerForUniversalSegmentation`.

    Raises ValueError naming the setting or the tensors that transformers does not have.
    """
    config = transformers_config(model, settings, criterion, labels)
    with torch.device("meta"):
        peer = Mask2FormerForUniversalSegmentation(config)
    peer.load_state_dict(transformers_state(model, criterion, peer), assign=True)
    peer.save_pretrained(folder)


def transformers_config(
    model: Mask2Former, settings: ModelSettings, criterion: CriterionSettings, labels: list[str]
) -> Mask2FormerConfig:
    """The config under which transformers builds this network and trains it with this loss.

    Raises ValueError naming the setting that transformers does not have.
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
            f"{masked.heads}: transformers has one number for both"
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
        decoder_layers=masked.layers + 1,  # it counts predictions
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
    """The state dict of `peer`, built from this model's config, with this model's weights."""
    named = TRANSFORMERS.from_ours(model.state_dict())
    named["criterion.empty_weight"] = _class_weights(model, criterion)
    for name, tensor in peer.state_dict().items():
        if name.endswith("num_batches_tracked") and name not in named:  # frozen here
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
            f"transformers' network has not the same {len(unlike)} tensors: "
            f"{', '.join(sorted(unlike))}"
        )
    return named


def _check(settings: ModelSettings) -> None:
    """Raise ValueError for what the other codes would compute otherwise."""
    if settings.norm == "group":
        raise ValueError("model.norm=group is of this code alone; others cannot load such a net")
    if settings.pixel_decoder.points != POINTS:
        raise ValueError(
            f"model.pixel_decoder.points={settings.pixel_decoder.points}: others have {POINTS}"
        )
    if group_norm(settings.dim).num_groups != GROUPS:
        raise ValueError(
            f"model.dim={settings.dim}: others normalize the pixel decoder in {GROUPS} groups, "
            f"this net has {group_norm(settings.dim).num_groups}; they load nets of dim=256"
        )


def _class_weights(model: Mask2Former, criterion: CriterionSettings) -> Tensor:
    """Weights [K + 1] of the classes in the cross entropy."""
    weights = torch.ones(model.masked_decoder.class_head.out_features)
    weights[-1] = criterion.no_object_weight
    return weights
