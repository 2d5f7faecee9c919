"""Stochastic depth whose random numbers are given from outside."""

from typing import Any

import torch
from torch import Tensor, nn


class DropPath:
    """Stochastic depth (arXiv 1603.09382), as a forward hook of a branch's last module.

    It drops the residual branch of individual samples and scales up the branch of the others.
    The backbone sets `uniform` [B] when it trains: sample b keeps its branch if uniform[b] >= rate.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.uniform: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], branch: Tensor) -> Tensor:
        if not module.training:
            return branch
        assert self.uniform is not None
        scale = (self.uniform >= self.rate).to(branch.dtype) / (1 - self.rate)  # [B]
        return branch * scale.view(-1, *(1 for _ in branch.shape[1:]))


def drop_branches(body: nn.Module, branches: tuple[str, ...], rate: float) -> list[DropPath]:
    """Give every branch of each block whose rate is above 0 a separate `DropPath`.

    transformers has one drop-path module per block, which draws from the global generator and, in
    Swin, acts on only one of the two branches. The identity replaces that module here.

    Args:
        body: The backbone.
        branches: Modules of a block, each of them the last one of a residual branch.
        rate: Rate of the last block; it grows linearly from 0 in the first one.
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
