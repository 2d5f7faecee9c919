"""Backbones of `transformers`, as feature maps by stride."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
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

from model.norms import ChannelNorm, replace_batch_norm
from model.targets import Draw

STRIDES = (4, 8, 16, 32)


class Family(NamedTuple):
    """A kind of backbone.

    Attributes:
        first: the field of the config that the stride of the first map depends on, and its value.
        branches: modules of a block, each the last one of a residual branch.
        is_plain: one resolution, stride 16, which a `SimplePyramid` makes four of.
    """

    config: type[PreTrainedConfig]
    body: type[PreTrainedModel]
    first: tuple[str, Any]
    branches: tuple[str, ...] = ()
    is_plain: bool = False


_PATCH_4, _PATCH_16 = ("patch_size", 4), ("patch_size", 16)
RESNET = Family(ResNetConfig, ResNetBackbone, ("downsample_in_first_stage", False))
SWIN = Family(SwinConfig, SwinBackbone, _PATCH_4, ("drop_path", "mlp"))
SWINV2 = Family(Swinv2Config, Swinv2Backbone, _PATCH_4, ("layernorm_before", "layernorm_after"))
CONVNEXT = Family(ConvNextConfig, ConvNextBackbone, _PATCH_4, ("drop_path",))
DINOV3_VIT = Family(
    DINOv3ViTConfig, DINOv3ViTBackbone, _PATCH_16, ("layer_scale1", "layer_scale2"), is_plain=True
)

_WINDOW_12 = {"window_size": 12, "image_size": 384}
_WINDOW_8 = {"window_size": 8, "image_size": 256}
_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
_LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]}
_CONVNEXT = {"hidden_sizes": [96, 192, 384, 768]}  # its body takes no tuple, the config's default
# rescaling of positions in training is off: it draws from the global generator
_VIT = {"num_register_tokens": 4, "pos_embed_rescale": None}

# Family and architecture of each known name; `model.backbone_config` overrides single fields.
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

# A classification checkpoint lacks the norms of feature maps (which start at identity, as
# published) and has a norm and a head beyond the backbone.
_FRESH = "hidden_states_norms."
_DROPPED = re.compile(r"(\w+\.)?(classifier|layernorm)\.")


class Backbone(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32 from a `transformers` backbone.

    Args:
        name: a key of `BACKBONES`.
        overrides: fields of the transformers config that differ from the named architecture.
        norm: normalization of ResNets, one of `NORMS`.
        weights: "none" (random initialization) or a local folder for `from_pretrained`.
        drop_path: stochastic depth rate of the last block; it grows linearly from 0 at the first.
            ResNets have none.

    Raises:
        ValueError: an unknown field, or weights that do not fit; names the setting.
    """

    def __init__(
        self,
        name: str,
        overrides: Mapping[str, Any] | None = None,
        norm: str = "frozen_batch",
        weights: str = "none",
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        family, config = _config(name, dict(overrides or {}), drop_path)
        if weights == "none":
            with _naming(overrides):
                body = family.body(config)
        else:
            body = _load(family.body, weights, config)
        self.pyramid = None
        channels = body.channels
        if family is RESNET:
            if norm == "sync_batch" and not torch.cuda.is_available():
                warnings.warn("model.norm=sync_batch needs CUDA: using batch", stacklevel=2)
                norm = "batch"
            body = replace_batch_norm(body, norm)
        elif family is SWIN:
            body.swin.layernorm = nn.Identity()  # its output reaches no feature map
        elif family.is_plain:
            body.embeddings.mask_token = None  # of pretraining
            self.pyramid = SimplePyramid(*channels)
            channels = self.pyramid.channels
        self.channels = dict(zip(STRIDES, channels, strict=True))
        self.body = body
        self.drop_paths: list[DropPath] = []
        if family.branches:
            self.drop_paths = _drop_branches(body, family.branches, config.drop_path_rate)

    def forward(self, images: Tensor, draw: Draw | None = None) -> dict[int, Tensor]:
        """Features {stride: [B, C, H/stride, W/stride]} of images [B, 3, H, W].

        `draw` gives the random numbers of stochastic depth, per image; without it torch's
        global generator does.
        """
        if self.training and self.drop_paths:
            shape = (len(self.drop_paths),)
            if draw is None:
                uniform = torch.rand(len(images), *shape, device=images.device)
            else:
                uniform = torch.stack([draw(i, "drop_path", shape) for i in range(len(images))])
            for path, column in zip(self.drop_paths, uniform.unbind(1), strict=True):
                path.uniform = column
        maps = self.body(images).feature_maps
        if self.pyramid is not None:
            maps = self.pyramid(*maps)
        return dict(zip(STRIDES, maps, strict=True))


class SimplePyramid(nn.Module):
    """Maps of strides 4, 8, 16, 32 from the one of a plain ViT (ViTDet, arXiv 2203.16527)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channels = (dim // 4, dim // 2, dim, dim)
        self.to_4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
            ChannelNorm(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2),
        )
        self.to_8 = nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Four maps of [B, C, H/16, W/16]."""
        return self.to_4(x), self.to_8(x), x, F.max_pool2d(x, 2)


class DropPath:
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per sample, rescales the rest.

    A forward hook of the branch's last module. `uniform` [B], set before each training step,
    decides: sample b is kept where it is >= rate.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.uniform: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], branch: Tensor) -> Tensor:
        if not module.training:
            return branch
        scale = (self.uniform >= self.rate).to(branch.dtype) / (1 - self.rate)  # [B]
        return branch * scale.view(-1, *(1 for _ in branch.shape[1:]))


def _drop_branches(body: nn.Module, branches: tuple[str, ...], rate: float) -> list[DropPath]:
    """Give every branch of every block a `DropPath` of its own.

    transformers has one module a block, which draws by itself and in Swin sees one branch only.
    """
    blocks = [module for module in body.modules() if hasattr(module, "drop_path")]
    rates = torch.linspace(0, rate, len(blocks), device="cpu").tolist()
    paths: list[DropPath] = []
    for block, block_rate in zip(blocks, rates, strict=True):
        block.drop_path = nn.Identity()
        if block_rate > 0:
            for branch in branches:
                paths.append(DropPath(block_rate))
                getattr(block, branch).register_forward_hook(paths[-1])
    return paths


def _config(
    name: str, overrides: dict[str, Any], drop_path: float
) -> tuple[Family, PreTrainedConfig]:
    family, architecture = BACKBONES[name]
    if family is not RESNET:
        architecture = architecture | {"drop_path_rate": drop_path}
    known = [key for key in family.config.__annotations__ if not key.startswith("_")]
    for key in overrides:
        if key not in known:
            raise ValueError(f"model.backbone_config.{key} is unknown; known: {', '.join(known)}")
    fields = architecture | overrides
    with _naming(overrides):
        config = family.config(**fields)
    for key in ("depths", "hidden_sizes", "num_heads"):
        if len(getattr(config, key, STRIDES)) != len(STRIDES):
            raise ValueError(f"model.backbone_config.{key}={fields[key]}: four stages are needed")
    key, value = family.first
    if fields.get(key, value) != value:
        raise ValueError(
            f"model.backbone_config.{key}={fields[key]}: strides of 4 to 32 need {value}"
        )
    if family.branches and not 0 <= config.drop_path_rate < 1:
        raise ValueError(
            f"model.backbone_config.drop_path_rate={config.drop_path_rate} is not in [0, 1)"
        )
    config.out_features = config.stage_names[-1 if family.is_plain else 1 :]
    return family, config


@contextmanager
def _naming(overrides: Mapping[str, Any] | None) -> Iterator[None]:
    """Name the setting where the library, in its own ways, says that a field cannot be built."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model.backbone_config={dict(overrides or {})} cannot be built: {reason}"
        ) from error


def _load(family: type[PreTrainedModel], folder: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone with the weights in `folder`; missing or unknown tensors are errors."""
    try:
        # not AutoBackbone: it asks the hub even about a folder
        body, info = family.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.weights={folder!r} cannot be loaded: {reason}") from error
    missing = [name for name in info["missing_keys"] if not name.startswith(_FRESH)]
    unexpected = [name for name in info["unexpected_keys"] if not _DROPPED.match(name)]
    for what, names in (("lacks", missing), ("has unknown", unexpected)):
        if names:
            raise ValueError(
                f"model.weights={folder!r} {what} {len(names)} tensors of the backbone, "
                f"first {min(names)}"
            )
    return body
