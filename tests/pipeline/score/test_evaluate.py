"""The scores of predictions made from the truth, and of images shared by ranks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model.masked_decoder import Predictions
from pipeline.data.augment.resize import shortest_edge_size
from pipeline.data.store import Store
from pipeline.score.evaluate import evaluate
from pipeline.score.headline import HEADLINE
from pipeline.score.inference import Result, network_input
from pipeline.score.scores import Scores
from pipeline.settings import EvaluationSettings, InferenceSettings
from shards.build.build import build
from shards.format.images import image_of
from shards.format.schema import Sample
from tests import distributed
from tests.shards.raw import RawImage, sky, write

SIDE, STRIDE = 64, 4
CPU = torch.device("cpu")
AT_OWN_SIZE = EvaluationSettings(short=SIDE, long=SIDE)


def blocks(*rows: str) -> np.ndarray:
    """Return a map `[SIDE, SIDE]` from digits, each of which fills a square."""
    grid = np.array([[int(digit) for digit in row] for row in rows])
    return grid.repeat(SIDE // len(rows), 0).repeat(SIDE // len(rows[0]), 1)


CAT, DOG, SKY = 3, 7, 90  # category ids of the publisher
PICTURES = [  # panoptic ids, their categories; instances are the cats and dogs among them
    (blocks("1122", "1122", "3333", "3330"), {1: CAT, 2: DOG, 3: SKY}),
    (blocks("1111", "1221", "1221", "1111"), {1: SKY, 2: CAT}),
    (blocks("1234", "1234", "5555", "5555"), {1: CAT, 2: CAT, 3: CAT, 4: DOG, 5: SKY}),
    (blocks("10", "22"), {1: DOG, 2: SKY}),
    (blocks("11", "12"), {1: SKY, 2: DOG}),
]


def raw_image(number: int) -> RawImage:
    ids, categories = PICTURES[number]
    masks = [(c, ids == id, 0) for id, c in categories.items() if c != SKY]
    return RawImage(f"{number}.png", (SIDE, SIDE), ids, categories, masks)


@pytest.fixture(scope="module")
def blocky(tmp_path_factory) -> Path:
    """A set of five images whose segments are made of squares of at least 16 pixels."""
    root, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("blocky")
    write(root, [raw_image(n) for n in range(len(PICTURES))])
    build("coco", root, out, jobs=1, shards=1, report=lambda _: None)
    return out / "val"


class Oracle(nn.Module):
    """A network that returns the truth of every image of a set, one query per segment.

    For the images in `wrong` it returns the truth of the previous image.
    """

    def __init__(self, store: Store, settings: InferenceSettings, wrong: tuple[int, ...] = ()):
        super().__init__()
        self.known = []
        classes = len(store.manifest.taxonomy)
        for number in range(len(store)):
            sample = store.load(number)
            predicted = store.load(number - 1) if number in wrong else sample
            pixels, valid = network_input(image_of(sample), settings)
            predictions = self.predictions(predicted, pixels.shape[2:], valid, classes)
            self.known.append((pixels, predictions))

    @staticmethod
    def predictions(sample, padded, valid, classes) -> Predictions:
        """Return the share of each segment in 4 x 4 pixels as logits; the last query is void."""
        queries = len(sample.segments) + 1
        truth = torch.from_numpy(sample.segments_map.astype(np.int64))
        masks = torch.stack([(truth == n).float() for n in range(1, queries + 1)])[None]
        masks = F.interpolate(masks, valid, mode="bilinear")
        masks = F.pad(masks, (0, padded[1] - valid[1], 0, padded[0] - valid[0]))
        logits = torch.zeros(queries, classes + 1)
        for query, segment in enumerate(sample.segments):
            logits[query, segment.category] = 20.0
        logits[-1, -1] = 20.0
        features = 10 * F.avg_pool2d(masks, STRIDE) - 5
        return Predictions(logits[None, None], torch.eye(queries)[None, None], features)

    def forward(self, pixels: torch.Tensor) -> Predictions:
        assert not self.training
        (found,) = [p for known, p in self.known if torch.equal(known, pixels)]
        return found


def score(folder: Path, settings=AT_OWN_SIZE, wrong=()) -> dict:
    store = Store(folder)
    return evaluate(Oracle(store, settings, wrong), store, settings, CPU)


def test_predictions_made_from_the_truth_score_100(blocky):
    """Every segment is found; masks of stride 4 only round off the corners by a pixel."""
    scores = score(blocky)
    for name in ("RQ", "AP", "AP50", "AP75"):
        assert scores[name] == pytest.approx(100, abs=1e-9)
    for name in ("PQ", "SQ", "PQ_th", "PQ_st", "mIoU", "pixel_accuracy"):
        assert 99 < scores[name] <= 100
    assert [row["name"] for row in scores["classes"]] == ["cat", "dog", "sky"]
    assert set(HEADLINE) <= scores.keys()


def test_a_wrong_image_changes_the_counts_as_computed_by_hand(blocky):
    """The fourth image is predicted as the third.

    Two of the three predicted cats lie on the true dog and are false positives. The third cat and
    the predicted dog lie on void and do not count. The true dog is missed, and the sky is found.
    """
    scores = score(blocky, wrong=(3,))
    counts = [[row[name] for name in ("tp", "fp", "fn")] for row in scores["classes"]]
    assert counts == [[5, 2, 0], [3, 0, 1], [5, 0, 0]]
    assert scores["RQ"] == pytest.approx(100 * (5 / 6 + 3 / 3.5 + 1) / 3, rel=1e-12)
    assert scores["AP50"] < 100
    assert scores["mIoU"] < 90


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "pq", "ap"), [
    (EvaluationSettings(short=640, long=640), 95.5, 92.5),  # native size
    (EvaluationSettings(short=256, long=400), 92.0, 80.0),  # not multiples of the stride
])  # fmt: skip
def test_photographs_reach_the_bound_of_masks_at_stride_4(photographs, settings, pq, ap):
    """Resize, pad, predict, and resize back. A shift by one pixel would cost 1.5 to 2.7 PQ."""
    scores = score(photographs / "val", settings)
    assert scores["PQ"] > pq
    assert scores["AP"] > ap


def numbers(scores: dict) -> dict[str, float]:
    """Return all scores in one dictionary, those of a class as `CLASS.METRIC`; -1 for null."""
    flat = {
        name: value for name, value in scores.items() if name not in ("classes", "data", "analysis")
    }
    for row in scores["classes"]:
        flat |= {f"{row['name']}.{key}": value for key, value in row.items() if key != "name"}
    return {name: -1 if value is None else value for name, value in flat.items()}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])  # five images: the last round has idle ranks
def test_ranks_share_the_images_and_give_the_numbers_of_one_process(blocky, world):
    alone = score(blocky, AT_OWN_SIZE, (3,))
    for scores in distributed.run(score, world, blocky, AT_OWN_SIZE, (3,)):
        assert scores == alone
    assert len(numbers(alone)) > 30


def truth_as_result(sample: Sample, things: tuple[bool, ...], shift: int = 0) -> Result:
    """Return the truth of a sample as a prediction, shifted by some pixels."""
    segments = [
        {"id": n, "category": s.category, "isthing": things[s.category], "score": 1 / n}
        for n, s in enumerate(sample.segments, 1)
    ]
    layers = sample.instance_layers
    found = [i for i in sample.instances_or_things(things) if not i.iscrowd]
    return Result(
        panoptic=np.roll(sample.segments_map.astype(np.int32), shift, 1),
        segments=segments,
        scores=np.linspace(1, 0.5, len(found), dtype=np.float32),
        categories=np.array([i.category for i in found], int),
        masks=[np.roll(layers[i.layer] == i.value, shift, 1) for i in found],
        semantic=np.roll(np.maximum(sample.classes().astype(np.int64) - 1, 0), shift, 1),
        highest_scores=np.linspace(0, 1, len(things), dtype=np.float32),
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=5, max_size=5), st.permutations(range(4)))
def test_any_partition_of_the_images_merges_to_the_whole(blocky, ranks, order):
    store = Store(blocky)
    taxonomy = store.manifest.taxonomy
    whole, *parts = (Scores(taxonomy, store.manifest.tasks) for _ in range(5))
    for number, rank in enumerate(ranks):
        sample = store.load(number)
        result = truth_as_result(sample, taxonomy.things, shift=5 * number)
        whole.update(result, sample, number)
        parts[rank].update(result, sample, number)
    first, *others = (parts[n] for n in order)
    for other in others:
        first.merge(other)
    assert first.result("f") == whole.result("f")
    found, wanted = first.record("f"), whole.record("f")
    assert (found.about, found.images) == (wanted.about, wanted.images)
    for task in ("panoptic", "instance", "semantic"):
        np.testing.assert_equal(getattr(found, task), getattr(wanted, task))


def test_the_truth_of_photographs_as_prediction_scores_100(photographs):
    store = Store(photographs / "val")
    taxonomy = store.manifest.taxonomy
    scores = Scores(taxonomy, store.manifest.tasks)
    for number in range(len(store)):
        sample = store.load(number)
        scores.update(truth_as_result(sample, taxonomy.things), sample, number)
    found = scores.result()
    perfect = ("PQ", "SQ", "RQ", "boundary_PQ", "AP", "AP75", "mIoU", "pixel_accuracy")
    assert {name: found[name] for name in perfect} == pytest.approx(dict.fromkeys(perfect, 100))


def test_the_scores_say_what_they_belong_to(blocky):
    scores = score(blocky, wrong=(3,))
    assert scores["images"] == len(PICTURES)
    assert scores["data"] == Store(blocky).manifest.fingerprint
    counts = [(row["images"], row["predicted_in"]) for row in scores["classes"]]
    assert counts == [(3, 4), (4, 4), (5, 5)]
    assert all(0.99 < row["highest_score"] <= 1 for row in scores["classes"])


def test_only_the_first_images_are_scored(blocky):
    store, advanced = Store(blocky), []
    oracle = Oracle(store, AT_OWN_SIZE).train()
    settings = EvaluationSettings(short=SIDE, long=SIDE, images=2)
    scores = evaluate(oracle, store, settings, CPU, advance=lambda: advanced.append(None))
    assert len(advanced) == 2
    assert sum(row["tp"] for row in scores["classes"]) == sum(store.index.segments[:2])
    assert oracle.training  # the mode is restored


def test_undefined_scores_are_null(tmp_path):
    write(tmp_path / "raw", [sky("a.png", (SIDE, SIDE)), sky("b.png", (SIDE, SIDE))])
    build("coco", tmp_path / "raw", tmp_path / "out", jobs=1, report=lambda _: None)
    scores = score(tmp_path / "out" / "val")
    assert scores["PQ"] == scores["PQ_st"] == scores["mIoU"] == 100
    for name in ("PQ_th", "SQ_th", "RQ_th", "AP", "AP50", "APs"):
        assert scores[name] is None
    assert scores["classes"][0]["PQ"] is scores["classes"][1]["AP"] is None
    json.dumps(scores, allow_nan=False)


def test_instances_come_from_thing_segments_if_the_set_has_no_instances(tmp_path):
    write(tmp_path / "raw", [raw_image(n) for n in range(3)], instances=False)
    build("coco", tmp_path / "raw", tmp_path / "out", jobs=1, report=lambda _: None)
    store = Store(tmp_path / "out" / "val")
    oracle = Oracle(store, AT_OWN_SIZE)
    assert "AP" not in evaluate(oracle, store, AT_OWN_SIZE, CPU)
    store.manifest = replace(store.manifest, tasks=("instance",))
    scores = evaluate(oracle, store, AT_OWN_SIZE, CPU)
    assert scores["AP"] == pytest.approx(100, abs=1e-9)
    assert "PQ" not in scores


# The input of the network


def published_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Scale the shorter side to `short`, or the longer to `long` if it would exceed `long`."""
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if max(new_height, new_width) > long:
        scale = long / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (512, 2048), (128, 256)])
def test_test_sizes_are_the_published_ones(short, long):
    settings = InferenceSettings(short=short, long=long)
    for height, width in [
        (480, 640), (640, 480), (427, 640), (640, 426), (500, 333), (200, 1000), (1000, 201),
        (375, 500), (64, 64), (612, 612), (51, 640),
    ]:  # fmt: skip
        pixels, valid = network_input(np.zeros((height, width, 3), np.uint8), settings)
        assert valid == published_size(height, width, short, long)
        padded = tuple(-(-side // 32) * 32 for side in valid)
        assert pixels.shape == (1, 3, *padded)


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (512, 2048), (640, 2560), (1024, 2048)])
def test_the_test_size_of_every_shape_is_the_published_one(short, long):
    shapes = np.random.default_rng(short).integers(1, 6000, (50_000, 2)).tolist()
    shapes += [(2221, 4442), (4442, 2221), *((n, 2 * n) for n in range(1, 6000))]
    for height, width in shapes:
        wanted = tuple(max(1, side) for side in published_size(height, width, short, long))
        assert shortest_edge_size(height, width, short, long) == wanted
    assert shortest_edge_size(2221, 4442, 800, 1333) == (666, 1333)
    assert shortest_edge_size(1, 5000, 800, 1333) == (1, 1333)


def test_input_is_normalized_and_padded_with_the_mean():
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)
    pixels, valid = network_input(image, InferenceSettings(short=40, long=70))
    assert valid == (40, 70)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    expected = ((image - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels[0, :, :40, :70], expected, atol=1e-6)
    assert pixels.shape == (1, 3, 64, 96)
    assert (pixels[0, :, 40:] == 0).all()
    assert (pixels[0, :, :, 70:] == 0).all()
