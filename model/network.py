"""What training, scores, and exports need of a network; `model.heads` lists the networks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.families import STRIDES
from model.masked_decoder import Predictions
from model.targets import Draw

MOST_SHAPES = 64  # different shapes of one kind of block in a network


class Network(nn.Module):
    """A backbone and the modules that predict classes and masks from it.

    A subclass is built from (ModelSettings, number of classes) and has a method `predict`.

    Attributes:
        backbone: The backbone; see `model.parts` for the names of its parts.
        masked_decoder: The module with the queries, `query_feat`, and the classes, `class_head`.
        mask_strides: Strides at which successive predictions become attention masks.
    """

    backbone: Backbone
    masked_decoder: Any
    mask_strides: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self._recorded: list[nn.Module] = []  # in a list, so that its parameters count once

    def forward(self, images: Tensor, draw: Draw | None = None) -> Predictions:
        """Return the predictions for a batch of images.

        Args:
            images: Normalized images [B, 3, H, W], H and W multiples of 32.
            draw: Random numbers of training; torch's generator if None.
        """
        if images.shape[2] % STRIDES[-1] or images.shape[3] % STRIDES[-1]:
            raise ValueError(f"images of {tuple(images.shape[2:])}: pad them to multiples of 32")
        if self.training and self._recorded:
            return self._recorded[0](images)
        return self.predict(images, draw)

    def predict(self, images: Tensor, draw: Draw | None = None) -> Predictions:
        """Return the predictions for images whose size is known to fit."""
        raise NotImplementedError

    def anneal(self, progress: float) -> None:
        """Set what changes in the course of a training, of which the part `progress` is done."""

    def compile_blocks(self) -> None:
        """Run the blocks of the network through `torch.compile`, for images of one size.

        Blocks of the same shape share their compiled code. A backbone or a decoder compiled as a
        whole runs no faster, but the first step takes minutes instead of 50 s (R50 on an H200).
        """
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_SHAPES)
        for part in self.children():
            if compile_blocks := getattr(part, "compile_blocks", None):
                compile_blocks()

    def record(self, images: Tensor) -> None:
        """Record training as CUDA graphs for images of a shape, if the network supports it."""

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Return a context in which training replays no CUDA graph, so that hooks are called."""
        recorded, self._recorded = self._recorded, []
        try:
            yield
        finally:
            self._recorded = recorded


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put back the buffers of a module, such as the statistics of batch normalization."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
