"""Mask2Former: backbone, pixel decoder and masked-attention decoder as one network."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import STRIDES, Backbone
from model.masked_decoder import MaskedDecoder, MaskedDecoderSettings, Predictions
from model.pixel_decoder import LEVELS, PixelDecoder, PixelDecoderSettings
from model.position import constant
from model.targets import Draw

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "Mask2Former", "ModelSettings", "Predictions", "normalize"]

PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB, 0-255: ImageNet
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass
class ModelSettings:
    """What the network is made of; `Backbone` explains the first five.

    `init_from` names a file or folder that `model.weights.load` is to give the whole network (or
    its backbone) before training; `weights` is not read then. `checkpoint_activations` keeps of
    each layer of both decoders its inputs only and runs it again in backward: less memory, the same
    gradients. `compile` puts both decoders and the backbone through `torch.compile`, for images of
    one size; equal to rounding, by the same parameter names.
    """

    backbone: str = "resnet50"
    backbone_config: dict[str, Any] = field(default_factory=dict)
    norm: str = "frozen_batch"
    weights: str = "none"
    drop_path: float = 0.3
    init_from: str = "none"
    queries: int = 100
    dim: int = 256
    checkpoint_activations: bool = False
    compile: bool = False
    pixel_decoder: PixelDecoderSettings = field(default_factory=PixelDecoderSettings)
    masked_decoder: MaskedDecoderSettings = field(default_factory=MaskedDecoderSettings)


class Mask2Former(nn.Module):
    """Mask2Former (arXiv 2112.01527) for `num_classes` classes, things and stuff alike.

    Raises:
        ValueError: a setting that cannot be built; names it.
    """

    def __init__(self, settings: ModelSettings, num_classes: int) -> None:
        super().__init__()
        _check(settings)
        self.backbone = Backbone(
            settings.backbone,
            settings.backbone_config,
            norm=settings.norm,
            weights=settings.weights if settings.init_from == "none" else "none",
            drop_path=settings.drop_path,
        )
        self.pixel_decoder = PixelDecoder(
            self.backbone.channels, settings.dim, settings.pixel_decoder
        )
        self.masked_decoder = MaskedDecoder(
            num_classes, settings.queries, settings.dim, len(LEVELS), settings.masked_decoder
        )
        for decoder in (self.pixel_decoder, self.masked_decoder):
            decoder.checkpoints = settings.checkpoint_activations
        if settings.compile:
            for part in (self.backbone.body, self.pixel_decoder, self.masked_decoder):
                part.compile(dynamic=False)

    def forward(self, images: Tensor, draw: Draw | None = None) -> Predictions:
        """Predictions for normalized images [B, 3, H, W], H and W multiples of 32.

        `draw` supplies the randomness of stochastic depth in training (torch's own otherwise).
        """
        if images.shape[2] % STRIDES[-1] or images.shape[3] % STRIDES[-1]:
            raise ValueError(f"images of {tuple(images.shape[2:])}: pad to multiples of 32")
        # not called as a module: ZeRO stage 3 hooks every module and takes no dict but of names
        features = self.backbone.forward(images, draw)
        memory, mask_features = self.pixel_decoder(features)
        return self.masked_decoder(memory, mask_features)


def normalize(images: Tensor) -> Tensor:
    """Network input (float32) from RGB images u8 [..., 3, H, W]."""
    mean, std = _pixel_statistics(images.device)
    return (images - mean) / std


@constant
def _pixel_statistics(device: torch.device) -> Tensor:
    return torch.tensor((PIXEL_MEAN, PIXEL_STD), device=device)[..., None, None]  # [2, 3, 1, 1]


def _check(settings: ModelSettings) -> None:
    if settings.queries < 1:
        raise ValueError(f"model.queries={settings.queries}: at least 1 is needed")
    if settings.dim % 8:
        raise ValueError(f"model.dim={settings.dim} is not a multiple of 8")
    for part in ("pixel_decoder", "masked_decoder"):
        heads = getattr(settings, part).heads
        if heads < 1 or settings.dim % heads:
            raise ValueError(f"model.{part}.heads={heads} does not divide model.dim={settings.dim}")
