"""The truth of the three tasks against masks written out by hand, and the batches of truths."""

from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.data.batch import Batch, Truth, collate, truth_of, without_empty
from shards.format.schema import Instance, Sample, Segment

THINGS = (True, True, False, False)


def entry(category, iscrowd=0, **more):
    kind = Instance if more else Segment
    return kind(id=7, category=category, iscrowd=iscrowd, area=1, bbox=[0] * 4, **more)


SEGMENTS = np.array(
    [
        [1, 1, 2, 2, 0],
        [1, 1, 2, 2, 0],
        [3, 3, 3, 6, 6],
        [5, 5, 3, 6, 6],
    ],
    np.uint8,
)
LISTED = [entry(0), entry(1), entry(2), entry(3), entry(1, iscrowd=1), entry(2, iscrowd=1)]
LAYERS = np.array([[[1, 1, 2], [1, 1, 2]], [[0, 1, 1], [0, 0, 3]]], np.uint8)
INSTANCES = [
    entry(0, layer=0, value=1),
    entry(1, layer=0, value=2),
    entry(1, layer=1, value=1),  # overlaps both
    entry(0, iscrowd=1, layer=1, value=3),
]


def sample(segments=None, listed=(), layers=None, instances=(), semantic=None):
    return Sample(
        *("key", b"", "jpg", "a.jpg", "coco", "7", 0, 0),
        segments=None if segments is None else list(listed),
        segments_map=segments,
        instances=None if layers is None else list(instances),
        layers=layers,
        semantic=semantic,
    )


def masks(truth: Truth) -> Counter:
    """Return the category and the mask of every entry."""
    assert len(truth.categories) == len(truth.layer) == len(truth.value)
    return Counter(
        (category, (truth.maps[layer] == value).tobytes())
        for category, layer, value in zip(*truth[1:], strict=True)
    )


def expected(*pairs) -> Counter:
    return Counter((category, np.asarray(mask).tobytes()) for category, mask in pairs)


def test_panoptic_truth_is_every_segment_but_crowds():
    truth = truth_of(sample(SEGMENTS, LISTED), "panoptic", THINGS)
    empty = np.zeros_like(SEGMENTS, bool)  # the fourth segment has no pixel but stays an entry
    assert masks(truth) == expected(
        (0, SEGMENTS == 1), (1, SEGMENTS == 2), (2, SEGMENTS == 3), (3, empty)
    )


def test_instance_truth_is_that_of_the_set_and_may_overlap():
    truth = truth_of(sample(SEGMENTS, LISTED, LAYERS, INSTANCES), "instance", THINGS)
    assert masks(truth) == expected((0, LAYERS[0] == 1), (1, LAYERS[0] == 2), (1, LAYERS[1] == 1))


def test_instance_truth_is_derived_from_thing_segments():
    truth = truth_of(sample(SEGMENTS, LISTED), "instance", THINGS)
    assert masks(truth) == expected((0, SEGMENTS == 1), (1, SEGMENTS == 2))


def test_semantic_truth_joins_segments_of_a_class_and_keeps_crowds():
    truth = truth_of(sample(SEGMENTS, LISTED), "semantic", THINGS)
    assert masks(truth) == expected(
        (0, SEGMENTS == 1),
        (1, (SEGMENTS == 2) | (SEGMENTS == 5)),
        (2, (SEGMENTS == 3) | (SEGMENTS == 6)),
    )
    assert (truth.maps[0] == 0).tolist() == (SEGMENTS == 0).tolist()  # void stays 0


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_an_image_without_segments_has_no_entries(task):
    void = np.zeros((4, 6), np.uint8)
    truth = truth_of(sample(void), task, THINGS)
    assert truth[1:] == ([], [], [])
    assert truth.maps.shape == (1, 4, 6)
    only_crowd = truth_of(sample(void + 1, [entry(1, iscrowd=1)]), task, THINGS)
    assert only_crowd.categories == ([1] if task == "semantic" else [])


def test_semantic_truth_is_that_of_the_set_if_it_has_one():
    own = np.array([[0, 1, 1, 4, 4]] * 4, np.uint8)
    for segments in ((SEGMENTS, LISTED), ()):
        truth = truth_of(sample(*segments, semantic=own), "semantic", THINGS)
        assert masks(truth) == expected((0, own == 1), (3, own == 4))


def test_an_image_without_instances_has_no_entries():
    truth = truth_of(sample(layers=np.zeros((1, 4, 6), np.uint8)), "instance", THINGS)
    assert truth[1:] == ([], [], [])


def test_without_empty_drops_entries_without_a_pixel():
    maps = np.array([[[1, 2], [2, 0]], [[1, 0], [0, 0]]], np.uint16)
    truth = Truth(maps, [5, 6, 7, 8, 9], [0, 0, 1, 1, 0], [1, 2, 1, 2, 300])
    kept = without_empty(truth)
    assert kept[1:] == ([5, 6, 7], [0, 0, 1], [1, 2, 1])
    assert kept.maps is maps
    assert without_empty(Truth(maps, [5], [1], [4]))[1:] == ([], [], [])


def prepared(truth: Truth, number: int = 0) -> dict:
    side = truth.maps.shape[-1]
    image = np.full((3, side, side), number, np.uint8)
    return {
        "image": image, "truth": truth, "size": (side - number, side),
        "key": f"k{number}", "position": 10 + number, "epoch": number,
    }  # fmt: skip


def test_collate_pads_layers_and_entries():
    first = Truth(np.array([[[1, 2], [0, 0]]], np.uint8), [4], [0], [2])
    second = Truth(np.array([[[1, 1], [1, 1]], [[0, 3], [0, 0]]], np.uint8), [0, 9], [0, 1], [1, 3])
    empty = Truth(np.zeros((1, 2, 2), np.uint8), [], [], [])
    batch = collate([prepared(first), prepared(second, 1), prepared(empty, 2)])
    assert isinstance(batch, Batch)
    assert batch.images.tolist() == [[[[n, n]] * 2] * 3 for n in range(3)]
    zeros = [[0, 0], [0, 0]]
    assert batch.targets.maps.tolist() == [
        [[[1, 2], [0, 0]], zeros],
        [[[1, 1], [1, 1]], [[0, 3], [0, 0]]],
        [zeros, zeros],
    ]
    assert batch.targets.categories.tolist() == [[4, -1], [0, 9], [-1, -1]]
    assert batch.targets.layer.tolist() == [[0, 0], [0, 1], [0, 0]]
    assert batch.targets.value.tolist() == [[2, 0], [1, 3], [0, 0]]
    assert batch.sizes.tolist() == [[2, 2], [1, 2], [0, 2]]
    assert (batch.keys, batch.positions, batch.epochs) == (
        ["k0", "k1", "k2"],
        [10, 11, 12],
        [0, 1, 2],
    )
    types = [part.dtype for part in (batch.images, *batch.targets, batch.sizes)]
    assert types == [torch.uint8, torch.uint8, *[torch.int64] * 4]


def test_a_batch_without_any_entry_has_one_column_of_padding():
    empty = Truth(np.zeros((1, 2, 2), np.uint8), [], [], [])
    batch = collate([prepared(empty), prepared(empty)])
    assert batch.targets.categories.tolist() == [[-1], [-1]]


@pytest.mark.parametrize(
    ("segments", "dtype"), [(255, torch.uint8), (256, torch.int32), (700, torch.int32)]
)
def test_maps_become_32_bit_past_255_segments(segments, dtype):
    side = 27
    values = np.zeros(side * side, np.uint16 if segments > 255 else np.uint8)
    values[:segments] = np.arange(1, segments + 1)
    maps = values.reshape(1, side, side)
    truth = truth_of(sample(maps[0], [entry(3)] * segments), "panoptic", THINGS)
    few = Truth(np.ones((1, side, side), np.uint8), [1], [0], [1])
    batch = collate([prepared(few), prepared(truth)])
    assert batch.targets.maps.dtype == dtype
    assert batch.targets.maps[1].tolist() == maps.tolist()
    assert batch.targets.value[1].tolist() == list(range(1, segments + 1))
