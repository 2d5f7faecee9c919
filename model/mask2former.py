"""Mask2Former: backbone, pixel decoder and masked-attention decoder as one network."""

import torch
from torch import Tensor, nn

from model import kernels
from model.backbone import Backbone
from model.masked_decoder import MaskedDecoder, Predictions
from model.network import Network, buffers_kept
from model.network_settings import ModelSettings
from model.parts import freeze
from model.pixel_decoder import LEVELS, PixelDecoder
from model.position import constant
from model.targets import Draw

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "Mask2Former", "ModelSettings", "Predictions", "normalize"]

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of ImageNet; RGB, 0 to 255
PIXEL_STD = (58.395, 57.12, 57.375)


class Mask2Former(Network):
    """Mask2Former (arXiv 2112.01527).

    Args:
        settings: The architecture. A folder of `weights` is loaded here. A file of `weights` and
            `init_from` are loaded afterwards by the functions of `model.weights.load`.
        num_classes: Number of classes, things and stuff together.

    Raises:
        ValueError: The backbone cannot be built or loaded, or `M2F_KERNELS` has an unknown value;
            names the setting.
    """

    mask_strides = LEVELS

    def __init__(self, settings: ModelSettings, num_classes: int) -> None:
        super().__init__()
        kernels.choices()  # an unknown value of M2F_KERNELS is refused here, before the first step
        self.backbone = Backbone(
            settings.backbone,
            settings.backbone_config,
            norm=settings.norm,
            weights=settings.weights_folder,
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
        freeze(self, settings.freeze)

    def predict(self, images: Tensor, draw: Draw | None = None) -> Predictions:
        """Return the predictions for images whose size is known to fit."""
        # `forward` directly: the hooks of ZeRO stage 3 accept no result with keys other than text
        features = self.backbone.forward(images, draw)
        memory, mask_features = self.pixel_decoder(features)
        return self.masked_decoder(memory, mask_features)

    def record(self, images: Tensor) -> None:
        """Record forward and backward in bfloat16 as CUDA graphs, which training now replays.

        A replay launches all kernels at once. One by one, they keep the host busy for longer than
        an H200 computes, even with 16 images of 1024 pixels. The parameters must stay in their
        memory. Stochastic depth changes from step to step, and synchronized batch normalization
        waits for other GPUs, so backbones with one of them are not recorded.

        Args:
            images: Images of the shape that training will have, on the GPU.
        """
        waits = any(isinstance(module, nn.SyncBatchNorm) for module in self.modules())
        if self.backbone.drop_paths or waits:
            return
        network = _WithoutDraws(self.backbone, self.pixel_decoder, self.masked_decoder)
        # Without its cache, autocast converts the parameters again in every replay.
        autocast = torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
        with buffers_kept(self), autocast:
            torch.cuda.make_graphed_callables(network, (images,), allow_unused_input=True)
        self._recorded.append(network)


class _WithoutDraws(nn.Module):
    """The parts of a network as one function of the images alone, as a CUDA graph needs it."""

    def __init__(
        self, backbone: Backbone, pixel_decoder: PixelDecoder, masked_decoder: MaskedDecoder
    ) -> None:
        super().__init__()
        self.backbone, self.pixel_decoder = backbone, pixel_decoder
        self.masked_decoder = masked_decoder

    def forward(self, images: Tensor) -> Predictions:
        return self.masked_decoder(*self.pixel_decoder(self.backbone(images)))


def normalize(images: Tensor) -> Tensor:
    """Return the network's input, float32, from RGB images uint8 [..., 3, H, W]."""
    mean, std = _pixel_statistics(images.device)
    return (images - mean) / std


@constant
def _pixel_statistics(device: torch.device) -> Tensor:
    return torch.tensor((PIXEL_MEAN, PIXEL_STD), device=device)[..., None, None]  # [2, 3, 1, 1]
