"""Mask2Former: backbone, pixel decoder and masked-attention decoder as one network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model import kernels
from model.backbone import BACKBONES, NORMS, RESNET, STRIDES, Backbone
from model.masked_decoder import MaskedDecoder, MaskedDecoderSettings, Predictions
from model.pixel_decoder import LEVELS, PixelDecoder, PixelDecoderSettings
from model.position import constant
from model.settings import SettingError, Settings, setting
from model.targets import Draw

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "Mask2Former", "ModelSettings", "Predictions", "normalize"]

PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB, 0-255: ImageNet
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass
class ModelSettings(Settings):
    """Architecture of the network and where its weights come from."""

    backbone: str = setting(
        "resnet50",
        "Architecture of the backbone; the names without a size take it from backbone_config.",
        choices=tuple(BACKBONES),
    )
    backbone_config: dict[str, Any] = setting(  # noqa: RUF009
        {}, "Fields of the backbone's transformers config that differ from the named architecture."
    )
    norm: str = setting(
        "frozen_batch",
        "Normalization layers of a ResNet; other backbones have their own.",
        choices=NORMS,
    )
    weights: str = setting(
        "none",
        "Folder of transformers with pretrained weights of the backbone, or none for random ones.",
    )
    drop_path: float = setting(
        0.3,
        "Rate of stochastic depth in the last block of a backbone that is not a ResNet; it grows "
        "linearly from 0 in the first block.",
        at_least=0,
        below=1,
    )
    init_from: str = setting(
        "none",
        "Run, folder, or file of weights that the whole network or its backbone starts from, "
        "instead of model.weights.",
    )
    queries: int = setting(100, "Number of queries, the most segments per image.", at_least=1)
    dim: int = setting(256, "Channels of both decoders.", at_least=8, multiple_of=8)
    checkpoint_activations: bool = setting(
        False,
        "Keep only the inputs of each decoder layer and run the layer again in backward, which "
        "takes less memory and gives the same gradients.",
    )
    compile: bool = setting(
        False, "Run the backbone and both decoders through torch.compile, for images of one size."
    )
    pixel_decoder: PixelDecoderSettings = setting(  # noqa: RUF009
        PixelDecoderSettings, "Sizes of the pixel decoder."
    )
    masked_decoder: MaskedDecoderSettings = setting(  # noqa: RUF009
        MaskedDecoderSettings, "Sizes of the transformer decoder."
    )

    def check(self) -> None:
        """Check that the heads divide the channels and that the backbone has the norm."""
        for part in ("pixel_decoder", "masked_decoder"):
            heads = getattr(self, part).heads
            if self.dim % heads:
                raise SettingError(f"{part}.heads", f"={heads}", f"it must divide dim={self.dim}")
        if self.norm != NORMS[0] and BACKBONES[self.backbone][0] is not RESNET:
            raise SettingError(
                "norm", f"={self.norm} is for ResNets", f"leave it out for {self.backbone}"
            )


class Mask2Former(nn.Module):
    """Mask2Former (arXiv 2112.01527) for `num_classes` classes, things and stuff alike.

    Raises:
        ValueError: a setting that cannot be built; names it.
    """

    def __init__(self, settings: ModelSettings, num_classes: int) -> None:
        super().__init__()
        kernels.choices()  # an unknown value of M2F_KERNELS is refused here, before the first step
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
            decoder.recomputes = settings.checkpoint_activations
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
