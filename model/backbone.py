"""ResNet and Swin backbones of `transformers`, as feature maps by stride."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
)

from model.norms import replace_batch_norm
from model.targets import Draw

STRIDES = (4, 8, 16, 32)
NORMS = ("frozen_batch", "batch", "sync_batch", "group")

# Family and architecture of each known name; `model.backbone_config` overrides single fields.
BACKBONES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "resnet": (ResNetConfig, {}),
    "resnet50": (ResNetConfig, {"depths": [3, 4, 6, 3]}),
    "resnet101": (ResNetConfig, {"depths": [3, 4, 23, 3]}),
    "swin": (SwinConfig, {}),
    "swin_tiny": (SwinConfig, {"embed_dim": 96, "depths": [2, 2, 6, 2]}),
    "swin_small": (SwinConfig, {"embed_dim": 96, "depths": [2, 2, 18, 2]}),
    "swin_base": (
        SwinConfig,
        {
            "embed_dim": 128,
            "depths": [2, 2, 18, 2],
            "num_heads": [4, 8, 16, 32],
            "window_size": 12,
            "image_size": 384,
        },
    ),
    "swin_large": (
        SwinConfig,
        {
            "embed_dim": 192,
            "depths": [2, 2, 18, 2],
            "num_heads": [6, 12, 24, 48],
            "window_size": 12,
            "image_size": 384,
        },
    ),
}

BODIES: dict[type[PreTrainedConfig], type[PreTrainedModel]] = {
    ResNetConfig: ResNetBackbone,
    SwinConfig: SwinBackbone,
}

# A classification checkpoint lacks Swin's output norms (which start at identity, as published) and
# has a head beyond the backbone.
_FRESH = "hidden_states_norms."
_DROPPED = "classifier."


class Backbone(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32 from a `transformers` backbone.

    Args:
        name: a key of `BACKBONES`.
        overrides: fields of the transformers config that differ from the named architecture.
        norm: normalisation of ResNets, one of `NORMS`.
        weights: "none" (random initialisation) or a local folder for `from_pretrained`.
        drop_path: largest stochastic depth rate of Swin.

    Raises:
        ValueError: an unknown name, field or norm, or weights that do not fit; names the setting.
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
        config = _config(name, dict(overrides or {}), norm, drop_path)
        family = BODIES[type(config)]
        body = family(config) if weights == "none" else _load(family, weights, config)
        self.channels = dict(zip(STRIDES, body.channels, strict=True))
        self.drop_paths = nn.ModuleList()
        if isinstance(config, SwinConfig):
            body.swin.layernorm = nn.Identity()  # its output reaches no feature map
            self.drop_paths.extend(_drop_both_branches(body))
        elif norm == "sync_batch" and not torch.cuda.is_available():
            warnings.warn("model.norm=sync_batch needs CUDA: using batch", stacklevel=2)
        else:
            body = replace_batch_norm(body, norm)
        self.body = body

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
        return dict(zip(STRIDES, self.body(images).feature_maps, strict=True))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per sample, rescales the rest.

    `uniform` [B], set before each training step, decides: sample b is kept where it is >= rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.uniform: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        scale = (self.uniform >= self.rate).to(x.dtype) / (1 - self.rate)  # [B]
        return x * scale[:, None, None]


class _DroppedMLP(nn.Module):
    """A Swin MLP with stochastic depth on its output; parameter names stay those of the MLP."""

    def __init__(self, mlp: nn.Module, drop_path: DropPath) -> None:
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = mlp.fc1, mlp.activation_fn, mlp.fc2
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.fc2(self.activation_fn(self.fc1(x))))


def _drop_both_branches(body: nn.Module) -> list[DropPath]:
    """Give both branches of every Swin block a `DropPath`; transformers drops attention only."""
    paths: list[DropPath] = []
    for stage in body.swin.encoder.layers:
        for block in stage.blocks:
            rate = getattr(block.drop_path, "drop_prob", 0.0)
            if rate > 0:
                block.drop_path = DropPath(rate)
                block.mlp = _DroppedMLP(block.mlp, DropPath(rate))
                paths += [block.drop_path, block.mlp.drop_path]
    return paths


def _config(name: str, overrides: dict[str, Any], norm: str, drop_path: float) -> PreTrainedConfig:
    if name not in BACKBONES:
        raise ValueError(f"model.backbone={name!r} is unknown; known: {', '.join(BACKBONES)}")
    if norm not in NORMS:
        raise ValueError(f"model.norm={norm!r} is unknown; known: {', '.join(NORMS)}")
    family, architecture = BACKBONES[name]
    if family is SwinConfig:
        if norm != NORMS[0]:
            raise ValueError(f"model.norm={norm!r} is for ResNets; leave it out for {name}")
        architecture = architecture | {"drop_path_rate": drop_path}
    for key in overrides:
        if key not in family.__annotations__ or key.startswith("_"):
            known = ", ".join(key for key in family.__annotations__ if not key.startswith("_"))
            raise ValueError(f"model.backbone_config.{key} is unknown; known: {known}")
    fields = architecture | overrides
    for key in ("depths", "hidden_sizes"):
        if len(fields.get(key, STRIDES)) != len(STRIDES):
            raise ValueError(f"model.backbone_config.{key}={fields[key]}: four stages are needed")
    return family(**fields, out_features=["stage1", "stage2", "stage3", "stage4"])


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
    unexpected = [name for name in info["unexpected_keys"] if not name.startswith(_DROPPED)]
    for what, names in (("lacks", missing), ("has unknown", unexpected)):
        if names:
            raise ValueError(
                f"model.weights={folder!r} {what} {len(names)} tensors of the backbone, "
                f"first {min(names)}"
            )
    return body
