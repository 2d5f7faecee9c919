"""The segmentations without branches, beside those of `model.segment` on random predictions."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import branchless
from model.masked_decoder import Predictions
from model.network_settings import SegmentSettings
from model.segment import ImagePrediction, instances, panoptic, semantic

THINGS = (True, False, True, False, False)
SIZE = (28, 36)
IS_THING = torch.tensor([*THINGS, False])


def predictions(seed: int) -> tuple[Predictions, Tensor]:
    """Return predictions of blobs for two images, and their mask logits at the images' size.

    Many queries share a class, and masks overlap, so that all rules of the merge apply.
    """
    random = torch.Generator().manual_seed(seed)
    classes = 4 * torch.randn(1, 2, 12, len(THINGS) + 1, generator=random)
    coarse = torch.randn(2, 6, 2, 3, generator=random)
    features = 6 * F.interpolate(coarse, (8, 12), mode="bicubic")
    embeddings = torch.randn(1, 2, 12, 6, generator=random)
    logits = torch.einsum("bqc,bchw->bqhw", embeddings[0], features)
    large = F.interpolate(logits, (32, 48), mode="bilinear")[..., : SIZE[0], : SIZE[1]]
    return Predictions(classes, embeddings, features), large


def test_panoptic_segments_are_those_of_segment():
    several = void = 0
    for seed, thresholds in itertools.product(
        range(10), itertools.product((0.0, 0.5, 0.8, 1.0), (0.0, 0.5, 0.8))
    ):
        found, large = predictions(seed)
        ids, classes, scores = branchless.panoptic(
            found.class_logits[-1], large, IS_THING, *thresholds
        )
        for i in range(2):
            prediction = ImagePrediction.of(found, i, SIZE, SIZE)
            wanted, segments = panoptic(prediction, THINGS, SegmentSettings(*thresholds))
            assert torch.equal(ids[i], wanted)
            count = len(segments)
            padding = [-1] * (12 - count)
            assert classes[i].tolist() == [row["category"] for row in segments] + padding
            assert scores[i, :count].tolist() == pytest.approx([row["score"] for row in segments])
            assert not scores[i, count:].any()
            several += len({row["category"] for row in segments}) < count
            void += count > 0 and bool((ids[i] == 0).any())
    assert several > 0
    assert void > 0


def test_instances_are_those_of_segment():
    for detections in (7, 60):
        found, large = predictions(3)
        logits = found.class_logits[-1]
        masks, classes, scores = branchless.instances(logits, large, IS_THING, detections)
        for i in range(2):
            prediction = ImagePrediction.of(found, i, SIZE, SIZE)
            wanted = instances(prediction, THINGS, SegmentSettings(detections=detections))
            order = wanted["scores"].argsort(descending=True)
            count = len(order)
            assert torch.equal(classes[i, :count].long(), wanted["categories"][order])
            torch.testing.assert_close(scores[i, :count], wanted["scores"][order])
            assert all(torch.equal(masks[i, n], wanted["masks"][k]) for n, k in enumerate(order))
            assert (classes[i, count:] == -1).all()
            assert not scores[i, count:].any()


def test_semantic_classes_are_those_of_segment():
    found, large = predictions(5)
    classes = branchless.semantic(found.class_logits[-1], large)
    for i in range(2):
        assert torch.equal(classes[i].long(), semantic(ImagePrediction.of(found, i, SIZE, SIZE)))
