"""Families of backbones in `transformers`, and the architectures with a name."""

from typing import Any, NamedTuple

from torch import nn
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
    Swinv2Backbone,
    Swinv2Config,
)
from transformers.models.convnext.modeling_convnext import ConvNextLayer
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersLayer,
)
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer
from transformers.models.swin.modeling_swin import SwinLayer
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer

STRIDES = (4, 8, 16, 32)
PATCH = 16  # stride of the single map of a plain ViT


class Family(NamedTuple):
    """A kind of backbone.

    Attributes:
        config: Class of its config.
        body: Class of its network.
        blocks: Classes of the modules that the network repeats.
        first: Field of the config that decides the stride of the first map, and its value.
        branches: Modules of a block, each of them the last one of a residual branch.
        is_plain: Whether it has one resolution, stride 16, of which `SimplePyramid` makes four.
    """

    config: type[PreTrainedConfig]
    body: type[PreTrainedModel]
    blocks: tuple[type[nn.Module], ...]
    first: tuple[str, Any]
    branches: tuple[str, ...] = ()
    is_plain: bool = False


_PATCH_4, _PATCH_16 = ("patch_size", 4), ("patch_size", PATCH)
RESNET = Family(
    ResNetConfig,
    ResNetBackbone,
    (ResNetBasicLayer, ResNetBottleNeckLayer),
    ("downsample_in_first_stage", False),
)
SWIN = Family(SwinConfig, SwinBackbone, (SwinLayer,), _PATCH_4, ("drop_path", "mlp"))
SWINV2 = Family(
    Swinv2Config,
    Swinv2Backbone,
    (Swinv2Layer,),
    _PATCH_4,
    ("layernorm_before", "layernorm_after"),
)
CONVNEXT = Family(ConvNextConfig, ConvNextBackbone, (ConvNextLayer,), _PATCH_4, ("drop_path",))
DINOV3_VIT = Family(
    DINOv3ViTConfig,
    DINOv3ViTBackbone,
    (DINOv3ViTLayer,),
    _PATCH_16,
    ("layer_scale1", "layer_scale2"),
    is_plain=True,
)
DINOV2_VIT = Family(
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersBackbone,
    (Dinov2WithRegistersLayer,),
    _PATCH_16,
    ("layer_scale1", "layer_scale2"),
    is_plain=True,
)

_WINDOW_12 = {"window_size": 12, "image_size": 384}
_WINDOW_8 = {"window_size": 8, "image_size": 256}
_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
_LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]}
# A list, because the network refuses the config's default, a tuple.
_CONVNEXT = {"hidden_sizes": [96, 192, 384, 768]}
# No rescaling of positions in training, because it draws from the global generator.
_VIT = {"num_register_tokens": 4, "pos_embed_rescale": None}
_DINOV2 = {"patch_size": PATCH, "image_size": 640}  # of the networks that EoMT published

# Family and architecture of each name; `model.backbone_config` overrides single fields.
BACKBONES: dict[str, tuple[Family, dict[str, Any]]] = {
    "resnet": (RESNET, {}),
    "resnet50": (RESNET, {"depths": [3, 4, 6, 3]}),
    "resnet101": (RESNET, {"depths": [3, 4, 23, 3]}),
    "swin": (SWIN, {}),
    "swin_tiny": (SWIN, {"embed_dim": 96, "depths": [2, 2, 6, 2]}),
    "swin_small": (SWIN, {"embed_dim": 96, "depths": [2, 2, 18, 2]}),
    "swin_base": (SWIN, _BASE | _WINDOW_12),
    "swin_large": (SWIN, _LARGE | _WINDOW_12),
    "swinv2": (SWINV2, {}),
    "swinv2_tiny": (SWINV2, {"embed_dim": 96, "depths": [2, 2, 6, 2]} | _WINDOW_8),
    "swinv2_small": (SWINV2, {"embed_dim": 96, "depths": [2, 2, 18, 2]} | _WINDOW_8),
    "swinv2_base": (SWINV2, _BASE | _WINDOW_8),
    "convnext": (CONVNEXT, _CONVNEXT),
    "convnext_tiny": (CONVNEXT, _CONVNEXT | {"depths": [3, 3, 9, 3]}),
    "convnext_small": (CONVNEXT, _CONVNEXT | {"depths": [3, 3, 27, 3]}),
    "convnext_base": (
        CONVNEXT,
        {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
    ),
    "convnext_large": (
        CONVNEXT,
        {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536]},
    ),
    "dinov2_vit": (DINOV2_VIT, _DINOV2),
    "dinov2_vit_large": (
        DINOV2_VIT,
        _DINOV2 | {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24},
    ),
    "dinov3_vit": (DINOV3_VIT, _VIT),
    "dinov3_vit_small": (
        DINOV3_VIT,
        _VIT | {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    ),
    "dinov3_vit_base": (
        DINOV3_VIT,
        _VIT | {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    ),
    "dinov3_vit_large": (
        DINOV3_VIT,
        _VIT
        | {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
        },
    ),
}
