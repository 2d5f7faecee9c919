"""Segmentations of small cases, and of random ones against a literal and slow implementation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.bench import peak_mib
from model.masked_decoder import Predictions
from model.segment import (
    ImagePrediction,
    SegmentSettings,
    instances,
    panoptic,
    semantic,
)

BOTH = pytest.mark.usefixtures("with_and_without_kernels")
THINGS = (True, True, False, False)
SETTINGS = SegmentSettings()


def strip(labels: list[int], scores: list[float], masks: list[list[float]]) -> ImagePrediction:
    """Return a prediction for one row of pixels with the label, score, and mask of each query.

    Resizing by 4 and back adds 1/16 of each neighbor to a pixel, which does not change signs.
    """
    width = len(masks[0])
    others = len(THINGS)  # the rest of the probability is shared by the other classes
    probability = torch.tensor([[(1 - score) / others] * (others + 1) for score in scores])
    for q, (label, score) in enumerate(zip(labels, scores, strict=True)):
        probability[q, label] = score
    features = torch.tensor(masks)[:, None]  # [Q, 1, width]
    return ImagePrediction(
        probability.log(), torch.eye(len(labels)), features, (4, 4 * width), (1, width)
    )


def test_unsure_pixels_stay_void() -> None:
    prediction = strip([0], [0.95], [[3.0] * 3 + [-3.0] * 5])
    segments_map, segments = panoptic(prediction, THINGS, SETTINGS)
    assert segments_map.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert segments_map.dtype == torch.int32
    (segment,) = segments
    assert segment["score"] == pytest.approx(0.95, abs=1e-6)
    assert (segment["id"], segment["category"], segment["isthing"]) == (1, 0, True)


@pytest.mark.parametrize(
    ("stolen", "expected"),
    [
        (2, [1] * 8 + [2] * 4),  # 8 of its 10 pixels left: exactly 0.8 is enough
        (3, [0] * 7 + [1] * 5),  # 7 of 10: rejected, and its pixels stay void
    ],
)
def test_overlap_ratio(stolen: int, expected: list[int]) -> None:
    lower = [8.0] * 10 + [-8.0] * 2
    upper = [-8.0] * (10 - stolen) + [8.0] * (2 + stolen)
    prediction = strip([0, 1], [0.9, 0.97], [lower, upper])
    segments_map, segments = panoptic(prediction, THINGS, SETTINGS)
    assert segments_map.tolist() == [expected]
    assert [s["id"] for s in segments] == list(range(1, max(expected) + 1))


def test_stuff_of_one_category_is_one_segment_and_things_are_not() -> None:
    masks = [[8.0 if x // 2 == q else -8.0 for x in range(10)] for q in range(5)]
    prediction = strip([2, 0, 2, 0, 3], [0.9, 0.9, 0.95, 0.9, 0.9], masks)
    segments_map, segments = panoptic(prediction, THINGS, SETTINGS)
    assert segments_map.tolist() == [[1, 1, 2, 2, 1, 1, 3, 3, 4, 4]]
    assert [(s["id"], s["category"], s["isthing"]) for s in segments] == [
        (1, 2, False),
        (2, 0, True),
        (3, 0, True),
        (4, 3, False),
    ]
    assert segments[0]["score"] == pytest.approx(0.9, abs=1e-6)


@BOTH
def test_equal_claims_go_to_the_first_query() -> None:
    prediction = strip([0] * 12, [0.9] * 12, [[5.0, 5.0]] * 12)
    segments_map, segments = panoptic(prediction, THINGS, SETTINGS)
    assert segments_map.tolist() == [[1, 1]]
    assert len(segments) == 1


def test_nothing_confident_is_all_void() -> None:
    prediction = strip([0, 4], [0.79, 0.99], [[5.0, 5.0], [5.0, 5.0]])
    segments_map, segments = panoptic(prediction, THINGS, SETTINGS)
    assert segments_map.tolist() == [[0, 0]]
    assert segments == []


@BOTH
def test_stuff_leaves_instances_after_the_best_are_taken() -> None:
    prediction = strip([2, 0, 1], [0.97, 0.9, 0.8], [[5.0, -5.0]] * 3)
    found = instances(prediction, THINGS, SegmentSettings(detections=2))
    assert found["categories"].tolist() == [0]
    assert [mask.tolist() for mask in found["masks"]] == [[[True, False]]]
    mean = torch.tensor(5 * (15 / 16 - 1 / 16)).sigmoid()  # one neighbor is the border's copy
    torch.testing.assert_close(found["scores"], 0.9 * mean[None], rtol=1e-5, atol=0)


def random_prediction(seed: int) -> ImagePrediction:
    torch.manual_seed(seed)
    queries, classes, dim = 20, len(THINGS), 6
    coarse = torch.randn(dim, 3, 3, dtype=torch.float64)
    return ImagePrediction(
        5 * torch.randn(queries, classes + 1, dtype=torch.float64),
        2 * torch.randn(queries, dim, dtype=torch.float64),
        F.interpolate(coarse[None], (8, 16), mode="bicubic")[0],  # blobs
        (30, 51),
        (23, 60),
    )


def full_logits(p: ImagePrediction) -> Tensor:
    logits = torch.einsum("qc,chw->qhw", p.mask_embeddings, p.mask_features)[None]
    logits = F.interpolate(logits, (32, 64), mode="bilinear", align_corners=False)
    logits = logits[..., :30, :51]
    return F.interpolate(logits, p.output_size, mode="bilinear", align_corners=False)[0]


def slow_panoptic(p: ImagePrediction, settings: SegmentSettings) -> tuple[Tensor, list[tuple]]:
    """Return the panoptic merge, computed pixel by pixel."""
    probability, mask = p.class_logits.softmax(1), full_logits(p).sigmoid()
    kept = []
    for q, row in enumerate(probability.tolist()):
        label = row.index(max(row))
        if label != len(THINGS) and max(row) > settings.object_threshold:
            kept.append((q, label, max(row)))
    height, width = p.output_size
    segments_map, segments, stuff = torch.zeros(height, width, dtype=torch.int32), [], {}
    winner = [
        [max(kept, key=lambda k: k[2] * mask[k[0], y, x].item())[0] for x in range(width)]
        for y in range(height)
    ]
    for q, label, score in kept:
        pixels = [(y, x) for y in range(height) for x in range(width)]
        won = [(y, x) for y, x in pixels if winner[y][x] == q]
        own = [(y, x) for y, x in pixels if mask[q, y, x] >= 0.5]
        final = [pixel for pixel in won if mask[q][pixel] >= 0.5]
        if not won or not own or not final or len(won) / len(own) < settings.overlap_threshold:
            continue
        if label not in stuff:
            segments.append((len(segments) + 1, label, THINGS[label], pytest.approx(score)))
        number = stuff.get(label, len(segments))
        if not THINGS[label]:
            stuff[label] = number
        for y, x in final:
            segments_map[y, x] = number
    return segments_map, segments


@BOTH
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_panoptic_follows_the_procedure(seed: int) -> None:
    prediction = random_prediction(seed)
    settings = SegmentSettings(object_threshold=0.4, overlap_threshold=0.2)
    expected_map, expected = slow_panoptic(prediction, settings)
    segments_map, segments = panoptic(prediction, THINGS, settings)
    assert 3 <= len(expected) < 20
    assert torch.equal(segments_map, expected_map)
    assert [tuple(s.values()) for s in segments] == expected


@BOTH
def test_instances_follow_the_procedure() -> None:
    prediction = random_prediction(3)
    logits, probability = full_logits(prediction), prediction.class_logits.softmax(1)[:, :-1]
    best = sorted(
        ((probability[q, c].item(), q, c) for q in range(20) for c in range(4)), reverse=True
    )[:30]
    expected = []
    for score, q, c in best:
        if THINGS[c]:
            mask = logits[q] > 0
            inside = (logits[q].sigmoid() * mask).sum() / (mask.double().sum() + 1e-6)
            expected.append((score * inside.item(), c, mask))
    found = instances(prediction, THINGS, SegmentSettings(detections=30))
    assert 0 < len(expected) < 30
    found = sorted(zip(*found.values(), strict=True), key=lambda one: one[0].item())
    expected.sort(key=lambda one: one[0])
    for (score, category, mask), (true_score, c, true_mask) in zip(found, expected, strict=True):
        assert score.item() == pytest.approx(true_score, rel=1e-12)
        assert c == category
        assert torch.equal(mask, true_mask)


@BOTH
def test_semantic_follows_the_procedure() -> None:
    prediction = random_prediction(4)
    probability = prediction.class_logits.softmax(1)[:, :-1]
    scores = torch.einsum("qk,qhw->khw", probability, full_logits(prediction).sigmoid())
    assert torch.equal(semantic(prediction), scores.argmax(0))
    assert semantic(prediction).unique().numel() > 1


def test_one_image_of_a_batch() -> None:
    torch.manual_seed(0)
    predictions = Predictions(
        torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 6).bfloat16(), torch.randn(2, 6, 8, 8)
    )
    one = ImagePrediction.of(predictions, 1, (30, 32), (60, 64))
    assert torch.equal(one.class_logits, predictions.class_logits[2, 1])
    assert one.mask_embeddings.dtype == torch.float32
    assert torch.equal(one.mask_features, predictions.mask_features[1])


def three_ways(queries: int, valid: tuple[int, int], output: tuple[int, int]) -> None:
    """Compute all segmentations of an image with confident queries only."""
    torch.manual_seed(0)
    classes = 10
    logits = torch.zeros(queries, classes + 1)
    logits[torch.arange(queries), torch.arange(queries) % classes] = 12
    small = [-(-side // 32) * 8 for side in valid]
    features = F.interpolate(torch.randn(1, 256, 6, 9), small, mode="bicubic")[0]
    prediction = ImagePrediction(logits, torch.randn(queries, 256), features, valid, output)
    things = [True] * classes
    assert len(panoptic(prediction, things, SegmentSettings(overlap_threshold=0))[1]) > 10
    assert len(instances(prediction, things, SETTINGS)["masks"]) == queries
    assert semantic(prediction).shape == output


@pytest.mark.slow
def test_a_photograph_of_12_megapixels_stays_under_2_gb() -> None:
    """The 100 masks of instances, which are returned at full size, take 1.2 GB of them."""
    assert peak_mib(three_ways, 100, (800, 1067), (3000, 4000)) < 2e9 / 2**20
