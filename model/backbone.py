"""Backbones of `transformers` as feature maps by stride."""

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from model.drop_path import DropPath, drop_branches
from model.families import BACKBONES, PATCH, RESNET, STRIDES, SWIN, Family
from model.norms import ChannelNorm, replace_batch_norm
from model.targets import Draw, draw_rows

# A classification checkpoint lacks the norms of feature maps, which start at the identity, and has
# a norm and a head in addition to the backbone.
_FRESH = "hidden_states_norms."
_DROPPED = re.compile(r"(\w+\.)?(classifier|layernorm)\.")

# What transformers raises for files of weights that are truncated or of another kind.
DAMAGED = (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError)


class Backbone(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32 from a `transformers` backbone.

    Args:
        name: A key of `BACKBONES`.
        overrides: Fields of the transformers config that differ from the named architecture.
        norm: Normalization of a ResNet, one of `model.network_settings.NORMS`.
        weights: "none" for random weights, or a local folder for `from_pretrained`.
        drop_path: Rate of stochastic depth in the last block; it grows linearly from 0 in the
            first one. ResNets have none.
        has_pyramid: Whether maps of all strides are made of the single map of a plain ViT.

    Raises:
        ValueError: A field is unknown, or the weights do not fit; names the setting.
    """

    def __init__(
        self,
        name: str,
        overrides: Mapping[str, Any] | None = None,
        norm: str = "frozen_batch",
        weights: str = "none",
        drop_path: float = 0.3,
        has_pyramid: bool = True,
    ) -> None:
        super().__init__()
        family, config = _config(name, dict(overrides or {}), drop_path)
        self.family = family
        body = _body(family, config, weights, overrides)
        self.pyramid = None
        channels = body.channels
        if family is RESNET:
            if norm == "sync_batch" and not torch.cuda.is_available():
                warnings.warn("model.norm=sync_batch needs a GPU; batch is used", stacklevel=2)
                norm = "batch"
            body = replace_batch_norm(body, norm)
        elif family is SWIN:
            body.swin.layernorm = nn.Identity()  # its output reaches no feature map
        elif family.is_plain:
            body.embeddings.mask_token = None  # only pretraining uses it
            if has_pyramid:
                self.pyramid = SimplePyramid(*channels)
                channels = self.pyramid.channels
        strides = STRIDES if len(channels) > 1 else (PATCH,)
        self.channels: dict[int, int] = dict(zip(strides, channels, strict=True))
        self.body: Any = body
        self.drop_paths: list[DropPath] = []
        if family.branches:
            self.drop_paths = drop_branches(body, family.branches, config.drop_path_rate)

    def forward(self, images: Tensor, draw: Draw | None = None) -> dict[int, Tensor]:
        """Return features {stride: [B, C, H/stride, W/stride]} of images [B, 3, H, W].

        The random numbers of stochastic depth are those of `draw_paths`.
        """
        self.draw_paths(images, draw)
        if images.is_cuda:  # convolutions on tensor cores take channels last
            images = images.contiguous(memory_format=torch.channels_last)
        maps = self.body(images).feature_maps
        if self.pyramid is not None:
            maps = self.pyramid(*maps)
        return dict(zip(self.channels, maps, strict=True))

    def draw_paths(self, images: Tensor, draw: Draw | None) -> None:
        """Draw which branches stochastic depth drops in training.

        The random numbers are those of `draw`, per image, or of torch's global generator if it is
        None.
        """
        if self.training and self.drop_paths:
            shape = (len(self.drop_paths),)
            if draw is None:
                uniform = torch.rand(len(images), *shape, device=images.device)
            else:
                uniform = draw_rows(draw, "drop_path", [1] * len(images), shape)
            for path, column in zip(self.drop_paths, uniform.unbind(1), strict=True):
                path.uniform = column

    def compile_blocks(self) -> None:
        """Run every block through `torch.compile`."""
        for module in self.body.modules():
            if isinstance(module, self.family.blocks):
                module.compile(dynamic=False)


class SimplePyramid(nn.Module):
    """Maps of strides 4, 8, 16, 32 from the single map of a plain ViT (arXiv 2203.16527)."""

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
        """Return four maps from x [B, C, H/16, W/16]."""
        return self.to_4(x), self.to_8(x), x, F.max_pool2d(x, 2)


def _config(
    name: str, overrides: dict[str, Any], drop_path: float
) -> tuple[Family, PreTrainedConfig]:
    """Return the family of a name, and its config with the overrides, checked."""
    family, architecture = BACKBONES[name]
    fields = dict(architecture)
    if family is not RESNET:
        fields["drop_path_rate"] = drop_path
    known = [key for key in family.config.__annotations__ if not key.startswith("_")]
    for key in overrides:
        if key not in known:
            raise ValueError(f"model.backbone_config.{key} is unknown; known: {', '.join(known)}")
    fields |= overrides
    with _naming(overrides):
        config = family.config(**fields)
    for key in ("depths", "hidden_sizes", "num_heads"):
        if len(getattr(config, key, STRIDES)) != len(STRIDES):
            raise ValueError(f"model.backbone_config.{key}={fields[key]}: give four stages")
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


def _body(
    family: Family, config: PreTrainedConfig, weights: str, overrides: Mapping[str, Any] | None
) -> Any:
    """Return the network of transformers, which does not declare the types of its attributes."""
    if weights != "none":
        return _load(family.body, weights, config)
    with _naming(overrides):
        return family.body(config)


@contextmanager
def _naming(overrides: Mapping[str, Any] | None) -> Iterator[None]:
    """Name the setting if the library raises an exception, of any class, about its fields."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model.backbone_config={dict(overrides or {})} cannot be built: {reason}"
        ) from error


def _load(family: type[PreTrainedModel], folder: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a backbone with the weights in `folder`.

    Raises:
        ValueError: The folder cannot be read, or its tensors are not those of the backbone.
    """
    try:
        # AutoBackbone would send a request to the hub, even for a folder
        body, info = family.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]  # a pair
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
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
