"""Normalization layers of the convolutional parts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics and affine terms are constants (buffers, no gradient).

    It is one multiply-add. Unlike `F.batch_norm`, it keeps no activation for backward.
    """

    eps = 1e-5
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (t.to(x.dtype)[:, None, None] for t in (scale, shift))  # [C, 1, 1]
        return torch.addcmul(shift, x, scale)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of every pixel of [B, C, H, W] over its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose filters have mean 0 and norm 1 (weight standardization, arXiv 1903.10520).

    Group normalization does not remove the mean of each channel over the data, as batch
    normalization does. Filters with mean 0 make up for it: networks learn from scratch several
    times faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        centered = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = F.normalize(centered, dim=(1, 2, 3))  # pyright: ignore[reportArgumentType]  # torch takes tuples, too
        return self._conv_forward(x, weight, self.bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of 32 groups, or of fewer if a group would hold less than 8 channels."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 8)), channels)


def replace_batch_norm(module: nn.Module, norm: str) -> nn.Module:
    """Return `module` with every BatchNorm2d replaced by another normalization.

    Statistics and affine terms are kept, except by `group`, which starts from the identity and
    standardizes the filters of every convolution.

    Args:
        module: The module, which is changed in place.
        norm: One of `model.network_settings.NORMS`.
    """
    if norm == "batch":
        return module
    if norm == "sync_batch":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _replacement(child, norm))
            elif isinstance(child, nn.Conv2d) and norm == "group":
                child.__class__ = StandardizedConv2d
    return module


def _replacement(batch_norm: nn.BatchNorm2d, norm: str) -> nn.Module:
    if norm == "group":
        return group_norm(batch_norm.num_features)
    frozen = FrozenBatchNorm2d(batch_norm.num_features)
    state = batch_norm.state_dict()
    frozen.load_state_dict({name: state[name] for name in frozen.state_dict()})
    return frozen
