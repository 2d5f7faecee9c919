"""Overfit eight photographs: PQ over time at native size, and the bound of masks at stride 4."""

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from jobs import config as configs
from jobs.bench import row
from jobs.build import build
from jobs.cluster.package import ROOT
from jobs.train import train
from model.segment import STRIDE
from pipeline.data.augment.recipes import AugmentSettings, augment
from pipeline.data.batch import Truth
from pipeline.data.store import Store
from pipeline.run.eventlog import read_kind
from pipeline.run.events import Evaluation, Start
from pipeline.score.panoptic import PanopticQuality
from shards.build.options import BuildOptions

RECIPE = Path(__file__).with_suffix(".yaml")
SAMPLE = ROOT / "tests" / "data" / "coco_ccby"
IMAGES = 8


def rows() -> list[dict]:
    """Train from scratch in runs/overfit, and score as `evaluate` does."""
    folder = configs.RUNS / "overfit"
    shutil.rmtree(folder, ignore_errors=True)
    shards = configs.RUNS / "overfit-shards"
    build(BuildOptions("coco", SAMPLE, shards, splits=("train",), limit=IMAGES))
    sets = [f"data.{name}={shards / 'train'}" for name in ("train", "val")]
    train(str(RECIPE), sets)
    crop = configs.load(str(RECIPE), sets).data.crop
    bound = stride_bound(Store(shards / "train"), crop)
    start = read_kind(folder, Start)[0].time
    curve = [
        ((event.time - start) / 60, event.scores["PQ"]) for event in read_kind(folder, Evaluation)
    ]
    print("minute  PQ")
    for minute, quality in curve:
        print(f"{minute:6.1f}  {quality:.1f}")
    reached = [minute for minute, quality in curve if quality >= 90]
    last_minute, last = curve[-1]
    return [
        row("overfit.pq", "PQ", last, better="higher", target=">= 90"),
        row("overfit.minutes", "min", last_minute, better="lower", target="<= 15"),
        row("overfit.minutes_to_90", "min", reached[0] if reached else None,
            better="lower", target="<= 15"),
        row("overfit.pq_bound_stride4", "PQ", bound, better="higher"),
    ]  # fmt: skip


def stride_bound(store: Store, crop: int) -> float:
    """Return the PQ of the truth itself after it was reduced to masks of stride 4."""
    quality = PanopticQuality(store.manifest.taxonomy.things)
    for number in range(len(store)):
        sample = store.load(number)
        truth = dict(sample.panoptic())
        classes = {n: segment.category for n, segment in truth.items() if not segment.iscrowd}
        segments = sample.segments_map
        assert segments is not None, "the photographs have panoptic truth"
        ids = _through_stride(segments, list(classes), crop)
        found = {n: category for n, category in classes.items() if (ids == n).any()}
        quality.update(ids, found, segments, truth)
    return quality.result()["PQ"]


def _through_stride(segments: np.ndarray, values: list[int], crop: int) -> np.ndarray:
    """Return the map int32 [H, W] of a network whose stride-4 probabilities are the exact areas."""
    image = np.zeros((*segments.shape, 3), np.uint8)
    fit = AugmentSettings(crop=crop, augment="none")
    random = np.random.default_rng(0)  # not used by this recipe
    _, maps, (height, width) = augment(image, Truth(segments[None], [], [], []), fit, random)
    masks = torch.from_numpy(np.stack([maps[0] == value for value in values])).float()[None]
    logits = F.avg_pool2d(masks, STRIDE) - 0.5  # [1, n, crop/4, crop/4]
    logits = F.interpolate(logits, (crop, crop), mode="bilinear")[..., :height, :width]
    logits = F.interpolate(logits, segments.shape, mode="bilinear")[0]
    value, owner = logits.max(0)
    ids = torch.tensor(values)[owner] * (value >= 0)
    return ids.numpy().astype(np.int32)
