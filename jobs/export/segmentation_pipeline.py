"""The segmentation of images by transformers' pipeline, as the code that trained the network does.

`export --to hub` copies this file and the two that it imports from beside the weights.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import ImageSegmentationPipeline
from transformers.image_utils import load_image

from model.branchless import instances, panoptic, semantic
from pipeline.data.augment.resize import resize, shortest_edge_size

STRIDE = 4  # of the masks


class SegmentationPipeline(ImageSegmentationPipeline):
    """A pipeline whose sizes and thresholds are those of the scores in the model card."""

    def preprocess(
        self, image: Any, subtask: str | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Return the input of the network: resized, normalized, and padded on two sides."""
        pixels = np.asarray(load_image(image, timeout=timeout).convert("RGB"))
        settings: Any = self.image_processor
        short, long = settings.size["shortest_edge"], settings.size["longest_edge"]
        height, width = shortest_edge_size(pixels.shape[0], pixels.shape[1], short, long)
        resized = torch.from_numpy(resize(pixels, height, width)).permute(2, 0, 1)
        mean, std = (
            255 * torch.tensor(values)[:, None, None]
            for values in (settings.image_mean, settings.image_std)
        )
        divisor = self._settings["size_divisor"]
        padding = (0, -width % divisor, 0, -height % divisor)
        return {
            "pixel_values": F.pad((resized - mean) / std, padding)[None],
            "sizes": ((height, width), pixels.shape[:2]),
        }

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        sizes = model_inputs.pop("sizes")
        return {**self.model(**model_inputs), "sizes": sizes}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        subtask: str | None = None,
        threshold: float | None = None,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Return the segments of an image.

        Args:
            model_outputs: The logits and the sizes of the image.
            subtask: "panoptic", "instance", or "semantic"; that of the training if None.
            threshold: The score that a segment must exceed. The default is that of the model card
                for panoptic segments, and 0 for instances.
            mask_threshold: The probability at which a mask ends. Only 0.5 is supported.
            overlap_mask_area_threshold: The least share of its mask that a panoptic segment keeps.
                The default is that of the model card.

        Raises:
            ValueError: The subtask is unknown, or masks are to end at another probability.
        """
        if mask_threshold != 0.5:
            raise ValueError(f"mask_threshold={mask_threshold}: masks end at a probability of 0.5")
        classes, masks = self._logits(model_outputs)
        subtask = subtask or self._settings["task"]
        if subtask == "semantic":
            labels = semantic(classes, masks)[0]
            return [self._found(None, label, labels == label) for label in labels.unique().tolist()]
        if subtask == "instance":
            masks, labels, scores = self._instances(classes, masks)
        elif subtask == "panoptic":
            thresholds = threshold, overlap_mask_area_threshold
            masks, labels, scores = self._panoptic(classes, masks, *thresholds)
        else:
            raise ValueError(f"subtask={subtask!r}: use panoptic, instance, or semantic")
        least = threshold if subtask == "instance" and threshold else 0.0
        rows = zip(scores[0].tolist(), labels[0].tolist(), masks[0], strict=True)
        return [
            self._found(score, label, mask)
            for score, label, mask in rows
            if label >= 0 and score > least
        ]

    def _logits(self, model_outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return class logits [1, Q, K + 1] and mask logits [1, Q, H, W] at the image's size."""
        (height, width), output = model_outputs["sizes"]
        classes, masks = (
            model_outputs[f"{name}_queries_logits"].float() for name in ("class", "masks")
        )
        padded = [STRIDE * side for side in masks.shape[2:]]
        masks = F.interpolate(masks, padded, mode="bilinear")[..., :height, :width]
        return classes, F.interpolate(masks, tuple(output), mode="bilinear")

    def _instances(self, classes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return bool masks [1, N, H, W], labels [1, N], and scores [1, N]."""
        pairs = classes.shape[1] * (classes.shape[2] - 1)
        count = min(self._settings["detections"], pairs)
        return instances(classes, masks, self._things(classes), count)

    def _panoptic(
        self, classes: Tensor, masks: Tensor, threshold: float | None, overlap: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return bool masks [1, n, H, W], labels [1, n], and scores [1, n] of n kept queries."""
        settings = self._settings
        least: float = settings["object_threshold"] if threshold is None else threshold
        share: float = settings["overlap_threshold"] if overlap is None else overlap
        scores, labels = classes.softmax(2).max(2)
        kept = ((labels < classes.shape[2] - 1) & (scores > least))[0]
        if not kept.any():
            return masks[:, kept], labels[:, kept], scores[:, kept]
        classes, masks = classes[:, kept], masks[:, kept]
        ids, labels, scores = panoptic(classes, masks, self._things(classes), least, share)
        numbers = torch.arange(1, labels.shape[1] + 1, device=ids.device)
        return ids[:, None] == numbers[:, None, None], labels, scores

    def _things(self, classes: Tensor) -> Tensor:
        return torch.tensor([*self._settings["things"], False], device=classes.device)

    @property
    def _settings(self) -> dict[str, Any]:
        return getattr(self.model.config, "mask2former")  # noqa: B009  # not a field of transformers

    def _found(self, score: float | None, label: int, mask: Tensor) -> dict[str, Any]:
        picture = Image.fromarray(mask.cpu().numpy().astype(np.uint8) * 255)
        names: Any = self.model.config.id2label
        return {"score": score, "label": names[label], "mask": picture}
