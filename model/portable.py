"""The network with the preparation of pixels and the segmentation, as one exportable program."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from model import branchless, kernels
from model.families import STRIDES
from model.mask2former import Mask2Former, Predictions, normalize
from model.masked_decoder import shrink
from model.network_settings import SegmentSettings
from model.pixel_decoder import LEVELS
from model.segment import STRIDE

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
        model: Mask2Former,
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
    pixels = torch.zeros(3, 3, 200, 330, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with kernels.use(KERNELS):
        return torch.export.export(
            segmenter.eval(),
            (pixels,),
            dynamic_shapes=(sizes,),
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def smallest_decision(predictions: Predictions) -> float:
    """Return the smallest absolute mask logit by which a layer masked its attention.

    A logit changes its sign if rounding moves it past 0. The query then attends to another set of
    pixels, so that two correct programs differ by more than by rounding.
    """
    features = predictions.mask_features
    guides = [shrink(features, stride // STRIDE).flatten(2) for stride in LEVELS]
    return min(
        float((embeddings @ guides[i % len(guides)]).abs().amin())
        for i, embeddings in enumerate(predictions.mask_embeddings[:-1])
    )
