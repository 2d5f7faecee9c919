"""ADE20K: compare the shards of generated sets with masks composed from the raw maps."""

import numpy as np
import pytest

from shards.format.manifest import Manifest
from tests.shards import raw_ade20k
from tests.shards.raw_maps import (
    assert_segments,
    made,
    pixels,
    samples,
    save,
    segment_masks,
    semantic_labels,
    write,
)

STUFF_LABELS = [  # the 50 stuff classes of the panoptic task, counted from 0
    *(*range(7), 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61),
    *(63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131),
    *(140, 141, 145),
]
THING_LABELS = [label for label in range(1, 151) if label - 1 not in STUFF_LABELS]

LAYOUT = raw_ade20k


def composed(raw, split, name):
    """Return category, crowd, and mask by id.

    They are painted as the reference preparation does: the stuff, then the instances on top.
    """
    semantic, instance = map(pixels, raw_ade20k.maps(raw, split, name))
    canvas = np.zeros(semantic.shape, int)
    category = {}
    for label in np.unique(semantic).tolist():
        if label and label not in THING_LABELS:
            canvas[semantic == label] = label
            category[label] = label
    red, green, _ = np.moveaxis(instance, -1, 0)
    for number in np.unique(green[green > 0]).tolist():
        mask = green == number
        (thing,) = np.unique(red[mask]).tolist()
        canvas[mask] = 256 * thing + number
        category[256 * thing + number] = THING_LABELS[thing - 1]
    return {id: (category[id], 0, canvas == id) for id in category if (canvas == id).any()}


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("val", 2)])
def test_segments_are_stuff_with_instances_on_top(raw, out, split, count):
    read = samples(out / split)
    assert len(read) == count
    for name, sample in read.items():
        expected = composed(raw, split, name)
        assert_segments(sample.segments, segment_masks(sample), out / split, expected)
        semantic, instance = map(pixels, raw_ade20k.maps(raw, split, name))
        bare = np.isin(semantic, THING_LABELS) & (instance[..., 1] == 0)
        assert bare.any()
        assert not sample.segments_map[bare].any()


def test_semantic_truth_is_the_map_of_annotations(raw, out):
    for name, sample in samples(out / "train").items():
        published = pixels(raw_ade20k.maps(raw, "train", name)[0])
        ours = semantic_labels(sample, out / "train")
        assert np.array_equal(ours, np.where(published == 0, -1, published))


def test_the_set_serves_all_tasks_and_names_its_terms(raw, out):
    manifest = Manifest.load(out / "train")
    assert manifest.tasks == ("panoptic", "instance", "semantic")
    assert manifest.members == ("jpg", "json", "segments.png", "semantic.png")
    assert manifest.licence[0]["url"] == "https://ade20k.csail.mit.edu/terms/"
    assert [c.id for c in manifest.taxonomy.categories] == list(range(1, 151))
    assert manifest.taxonomy.things == tuple(n not in STUFF_LABELS for n in range(150))
    for name, sample in samples(out / "train").items():
        assert sample.image == raw_ade20k.image(raw, "train", name).read_bytes()
        assert sample.rights["licence"] == "https://ade20k.csail.mit.edu/terms/"


def test_a_set_of_instances_alone_has_the_things_in_the_publishers_order(raw, tmp_path):
    made(raw_ade20k, raw, tmp_path, tasks=("instance",))
    manifest = Manifest.load(tmp_path / "train")
    assert [c.id for c in manifest.taxonomy.categories] == THING_LABELS
    for name, sample in samples(tmp_path / "train").items():
        red, green, _ = np.moveaxis(pixels(raw_ade20k.maps(raw, "train", name)[1]), -1, 0)
        wanted = {256 * r + g: r - 1 for r, g in zip(red[green > 0], green[green > 0], strict=True)}
        assert {segment.id: segment.category for segment in sample.segments} == wanted


def test_pixels_that_are_another_thing_in_the_semantic_map_are_counted(tmp_path):
    raw = write(raw_ade20k, tmp_path / "raw", train=1, val=1)
    semantic, instance = raw_ade20k.maps(raw, "train", "train0")
    labels, objects = pixels(semantic), pixels(instance)
    row, column = np.argwhere((labels == 8) & (objects[..., 1] > 0))[0]
    labels[row, column] = 13  # a person, but a pixel of a bed's instance
    save(semantic, labels.astype(np.uint8))
    made(raw_ade20k, raw, tmp_path / "out")
    (finding,) = (tmp_path / "out/train/findings.jsonl").read_text().splitlines()
    assert "1 pixels of instances are another thing" in finding
