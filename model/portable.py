"""The network with the preparation of pixels and the segmentation, as one exportable program."""

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from model import branchless, kernels
from model.families import STRIDES
from model.mask2former import Predictions, normalize
from model.masked_decoder import shrink
from model.network import Network
from model.network_settings import SegmentSettings
from model.segment import STRIDE
from model.windows import exact_windows

KERNELS = f"{kernels.REFERENCE},deformable_attention=gather"
OUTPUTS = {  # the results of each task, before `LOGITS`
    "panoptic": ("ids", "classes", "scores"),
    "instance": ("masks", "classes", "scores"),
    "semantic": ("classes",),
}
LOGITS = ("class_logits", "mask_logits")


class Segmenter(nn.Module):
    """A network from pixels to the segmentation of one task.

    Args:
        model: The network.
        task: A key of `OUTPUTS`.
        things: For every class, whether it is a thing.
        settings: Thresholds.
        divisor: Divisor of the padded height and width, a multiple of 32.
    """

    is_thing: Tensor

    def __init__(
        self,
        model: Network,
        task: str,
        things: Sequence[bool],
        settings: SegmentSettings,
        divisor: int = STRIDES[-1],
    ) -> None:
        super().__init__()
        self.model, self.task, self.settings, self.divisor = model, task, settings, divisor
        self.register_buffer("is_thing", torch.tensor([*things, False]), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors `OUTPUTS` of the task, and `LOGITS`.

        Args:
            pixels: RGB uint8 [B, 3, H, W].
        """
        height, width = pixels.shape[2:]
        predictions = self.model(self.padded(normalize(pixels)))
        class_logits = predictions.class_logits[-1]  # [B, Q, K + 1]
        logits = self.mask_logits(predictions)
        size = [STRIDE * side for side in logits.shape[2:]]
        large = F.interpolate(logits, size, mode="bilinear")[..., :height, :width]
        return *self._segment(class_logits, large), class_logits, logits

    def padded(self, images: Tensor) -> Tensor:
        """Return images [B, 3, H, W] with zeros below and right, up to multiples of the divisor."""
        bottom, right = (
            (side + self.divisor - 1) // self.divisor * self.divisor - side
            for side in images.shape[2:]
        )
        return F.pad(images, (0, right, 0, bottom))

    @staticmethod
    def mask_logits(predictions: Predictions) -> Tensor:
        """Return the logits of the result's masks, [B, Q, h, w] at a quarter of the padded size."""
        features = predictions.mask_features
        logits = predictions.mask_embeddings[-1] @ features.flatten(2)
        return logits.unflatten(2, features.shape[2:])

    def _segment(self, class_logits: Tensor, mask_logits: Tensor) -> tuple[Tensor, ...]:
        if self.task == "semantic":
            return (branchless.semantic(class_logits, mask_logits),)
        inputs = class_logits, mask_logits, self.is_thing
        if self.task == "panoptic":
            thresholds = self.settings.object_threshold, self.settings.overlap_threshold
            return branchless.panoptic(*inputs, *thresholds)
        pairs = class_logits.shape[1] * (class_logits.shape[2] - 1)
        return branchless.instances(*inputs, min(self.settings.detections, pairs))


@torch.no_grad()
def trace(segmenter: Segmenter) -> ExportedProgram:
    """Return the operations of a segmenter, for any number of images of any one size."""
    # At all strides, the maps consist of several windows of 7 or 12 pixels, the last ones cut.
    pixels = torch.zeros(3, 3, 400, 530, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with kernels.use(KERNELS), exact_windows(), no_cache_of_shapes():
        program = torch.export.export(
            segmenter.eval(),
            (pixels,),
            dynamic_shapes=(sizes,),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _generalize(program)
    return program


def no_cache_of_shapes() -> AbstractContextManager[None]:
    """Let torch compute the shapes of every operation, instead of looking for an equal one.

    The comparison of symbolic shapes costs more time than it saves: a third of that of a trace.
    """
    return torch._dynamo.config.patch(fake_tensor_cache_enabled=False)


def _generalize(program: ExportedProgram) -> None:
    """Remove the assertions that two sizes differ, or that a size is not 1.

    torch asks, for example, whether a cropped tensor is contiguous. It is not for the traced size,
    so torch copies, and asserts that every other size is cropped, too. The copy is right for all.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and _says_unequal(node.args[0]):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _says_unequal(condition: Any) -> bool:
    if condition.target is torch.sym_not:
        return condition.args[0].target is operator.eq
    compares = condition.target in (operator.gt, operator.ge, operator.lt, operator.le)
    return compares and any(side in (1, 2) for side in condition.args if isinstance(side, int))


def smallest_decisions(predictions: Predictions, strides: Sequence[int]) -> Tensor:
    """Return, per image, the smallest absolute mask logit by which a layer masked its attention.

    A logit changes its sign if rounding moves it past 0. The query then attends to another set of
    pixels, so that two correct programs differ by more than by rounding.

    Args:
        predictions: The predictions of all layers.
        strides: `Network.mask_strides`.
    """
    features = predictions.mask_features
    guides = [shrink(features, stride // STRIDE).flatten(2) for stride in strides]
    smallest = [
        (embeddings @ guides[i % len(guides)]).abs().amin((1, 2))
        for i, embeddings in enumerate(predictions.mask_embeddings[:-1])
    ]
    return torch.stack(smallest).amin(0)
