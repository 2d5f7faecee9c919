"""Measure the panoptic merge of an image against transformers, for 8 to 100 confident queries.

Time is measured with an image of 800x1333 pixels and memory with one of 3000x4000, which the
network sees at 800x1067. The masks are smooth and random. The peer first resizes all masks to
384x384, which is less work than the procedure of the paper's code, which this project follows.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

from jobs.bench import alternate, peak_mib, row
from model.segment import STRIDE, ImagePrediction, SegmentSettings, panoptic

CLASSES, QUERIES, THINGS = 133, 100, 80
SETTINGS = SegmentSettings()
PEER = "transformers"
PICTURE = ((800, 1333), (800, 1333))  # (height, width) as the network sees it, and of the file
PHOTOGRAPH = ((800, 1067), (3000, 4000))


def rows() -> list[dict]:
    """Return the seconds per image for each number of kept queries, and a large image's memory."""
    measured = []
    for kept in (8, 20, 50, 100):
        seconds = alternate(works(case(kept, *PICTURE)))
        measured.append(
            row(
                f"segment.panoptic.time.kept{kept}",
                "s",
                seconds["ours"],
                peer=seconds["peer"],
                peer_name=PEER,
                better="lower",
                target="<= 0.5x" if kept == 20 else "<= 1x",
            )
        )
    memory = {name: peak_mib(photograph, name) for name in ("ours", "peer")}
    measured.append(
        row(
            "segment.panoptic.memory.3000x4000",
            "MiB",
            memory["ours"],
            peer=memory["peer"],
            peer_name=PEER,
            better="lower",
            target="<= 2048",
        )
    )
    return measured


def works(prediction: ImagePrediction) -> dict[str, Callable[[], object]]:
    """Return both procedures as functions that process the same prediction."""
    things = [category < THINGS for category in range(CLASSES)]
    masks = prediction.mask_embeddings @ prediction.mask_features.flatten(1)
    outputs = SimpleNamespace(
        class_queries_logits=prediction.class_logits[None],
        masks_queries_logits=masks.unflatten(1, prediction.mask_features.shape[1:])[None],
    )
    return {
        "ours": lambda: panoptic(prediction, things, SETTINGS),
        "peer": lambda: Mask2FormerImageProcessorPil().post_process_panoptic_segmentation(
            outputs,
            threshold=SETTINGS.object_threshold,
            label_ids_to_fuse=set(range(THINGS, CLASSES)),
            target_sizes=[prediction.output_size],
        ),
    }


def photograph(name: str) -> None:
    """Process a large image with 20 confident queries by one of the two procedures."""
    works(case(20, *PHOTOGRAPH))[name]()


def case(kept: int, valid: tuple[int, int], output: tuple[int, int]) -> ImagePrediction:
    """Return a prediction with `kept` confident queries, which are spread evenly over all."""
    torch.manual_seed(0)
    logits = torch.zeros(QUERIES, CLASSES + 1)
    logits[:, CLASSES] = 10
    confident = torch.arange(kept) * QUERIES // kept
    logits[confident, CLASSES] = 0
    logits[confident, torch.arange(kept) % CLASSES] = 12
    small = [-(-side // 32) * 32 // STRIDE for side in valid]  # of the padded input
    features = F.interpolate(torch.randn(1, 256, 6, 9), small, mode="bicubic")[0] / 4
    return ImagePrediction(logits, torch.randn(QUERIES, 256) / 2, features, valid, output)
