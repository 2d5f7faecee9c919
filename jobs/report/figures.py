"""The pictures of a report: the worst images with truth and prediction, and single mistakes."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from jobs.pages import data_uri
from jobs.report.choice import Mistake, confident_mistakes, worst_images
from jobs.segmenter import Segmented
from model.network import Network
from pipeline.data.store import Store
from pipeline.pictures.regions import Region, RegionMap, true_regions
from pipeline.pictures.render import enlarge, overlay, shrink
from pipeline.score.inference import InferenceSettings, infer
from pipeline.score.record import Record
from shards.format.images import image_of

SIDE, CROP_SIDE = 420, 260  # pixels of the longer side of a picture, and of a cut-out
_MARGIN = 0.35  # around a mistake, as a share of its box
_LEAST_MARGIN = 12  # pixels


class Figures(NamedTuple):
    """The pictures of a report as JSON values, whose pictures are data URIs."""

    worst: list[dict[str, Any]]
    mistakes: list[dict[str, Any]]


def draw_figures(
    model: Network,
    store: Store,
    settings: InferenceSettings,
    device: torch.device,
    record: Record,
    scores: dict[str, Any],
) -> Figures:
    """Choose and draw the worst images and the most confident mistakes of a pass.

    Args:
        model: The network, which segments these images again.
        store: The set.
        settings: The sizes and thresholds.
        device: The device of the network.
        record: The counters of the pass.
        scores: Its scores.
    """
    reasons = scores.get("analysis", {}).get("instance") or {}
    worst = worst_images(record, reasons.get("best_F1_threshold") or 0.0)
    mistakes = confident_mistakes(record)
    task = next(t for t in ("panoptic", "instance", "semantic") if t in store.manifest.tasks)
    taxonomy = store.manifest.taxonomy
    drawn: dict[int, list[str]] = {}  # by the index in `chosen`
    chosen = [*worst, *mistakes]
    for number in sorted({one.number for one in chosen}):
        sample = store.load(number)
        image = image_of(sample)
        result = infer(model, image, settings, taxonomy.things, device)
        segmented = Segmented(image, result, taxonomy, task)
        truth = true_regions(sample)["instances" if task == "instance" else task]
        for n, one in enumerate(chosen):
            if one.number == number:
                is_mistake = isinstance(one, Mistake)
                draw = partial(_cut_out, mistake=one) if is_mistake else _panels
                drawn[n] = draw(segmented, truth)
    entries = [one._asdict() | {"pictures": drawn[n]} for n, one in enumerate(chosen)]
    return Figures(entries[: len(worst)], entries[len(worst) :])


def _panels(segmented: Segmented, truth: RegionMap) -> list[str]:
    """Return an image, its truth, and its prediction."""
    image = enlarge(shrink(segmented.image, truth.ids.astype(np.int32), SIDE)[0])
    return [data_uri(image, SIDE), *(
        data_uri(overlay(*shrink(segmented.image, found.ids.astype(np.int32), SIDE), found.regions,
                         segmented.taxonomy), SIDE)
        for found in (truth, segmented.regions)
    )]  # fmt: skip


def _cut_out(segmented: Segmented, truth: RegionMap, mistake: Mistake) -> list[str]:
    """Return what surrounds a mistake: with the false prediction, and with the truth."""
    mask = _mask_of(segmented, mistake)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    part = tuple(
        slice(max(0, found[0] - margin), found[-1] + margin + 1)
        for found in (rows, columns)
        for margin in (_LEAST_MARGIN + round(_MARGIN * (found[-1] - found[0])),)
    )
    image = segmented.image[part]
    prediction = RegionMap(mask[part].astype(np.int32), [Region(1, mistake.category)])
    cut = RegionMap(truth.ids[part].astype(np.int32), truth.regions)
    return [
        data_uri(overlay(image, found.ids, found.regions, segmented.taxonomy), CROP_SIDE)
        for found in (prediction, cut)
    ]


def _mask_of(segmented: Segmented, mistake: Mistake) -> np.ndarray:
    """Return the mask of the prediction of the same class with the nearest score."""
    result = segmented.result
    if segmented.task == "panoptic":
        same = [s for s in result.segments if s["category"] == mistake.category]
        nearest = min(same, key=lambda s: abs(s["score"] - mistake.score), default={"id": -1})
        return result.panoptic == nearest["id"]
    same = np.flatnonzero(result.categories == mistake.category).tolist()
    if not same:
        return np.zeros(segmented.image.shape[:2], bool)
    return result.masks[min(same, key=lambda n: abs(float(result.scores[n]) - mistake.score))]
