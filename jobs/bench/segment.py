"""Panoptic post-processing of one picture, beside transformers', at 8 to 100 confident queries.

Pictures of 800x1333 pixels with smooth random masks. The peer resizes all masks to 384x384 first,
which is less work than the procedure of the paper's code that we follow.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

from jobs.bench import alternate, row
from model.segment import ImagePrediction, SegmentSettings, panoptic

CLASSES, QUERIES, THINGS = 133, 100, 80
SIZE, SMALL = (800, 1333), (200, 336)


def rows() -> list[dict]:
    """Seconds an image at each number of kept queries."""
    settings = SegmentSettings()
    things = [category < THINGS for category in range(CLASSES)]
    peer = Mask2FormerImageProcessorPil()
    measured = []
    for kept in (8, 20, 50, 100):
        prediction = case(kept)
        masks = prediction.mask_embeddings @ prediction.mask_features.flatten(1)
        outputs = SimpleNamespace(
            class_queries_logits=prediction.class_logits[None],
            masks_queries_logits=masks.unflatten(1, SMALL)[None],
        )
        works = {
            "ours": lambda p=prediction: panoptic(p, things, settings),
            "peer": lambda o=outputs: peer.post_process_panoptic_segmentation(
                o,
                threshold=settings.object_threshold,
                label_ids_to_fuse=set(range(THINGS, CLASSES)),
                target_sizes=[SIZE],
            ),
        }
        seconds = alternate(works)
        measured.append(
            row(
                f"segment.panoptic.time.kept{kept}",
                "s",
                seconds["ours"],
                peer=seconds["peer"],
                peer_name="transformers",
                better="lower",
                target="<= 0.5x" if kept == 20 else "<= 1x",
            )
        )
    return measured


def case(kept: int) -> ImagePrediction:
    """A prediction of which `kept` queries, spread over all, are confident."""
    torch.manual_seed(0)
    logits = torch.zeros(QUERIES, CLASSES + 1)
    logits[:, CLASSES] = 10
    confident = torch.arange(kept) * QUERIES // kept
    logits[confident, CLASSES] = 0
    logits[confident, torch.arange(kept) % CLASSES] = 12
    features = F.interpolate(torch.randn(1, 256, 6, 9), SMALL, mode="bicubic")[0] / 4
    return ImagePrediction(logits, torch.randn(QUERIES, 256) / 2, features, SIZE, SIZE)
