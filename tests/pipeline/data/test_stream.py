"""Batches compared with the raw files; the same bytes for every division of the work."""

import contextlib
import io
import json
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from pipeline.data.loader import loader
from pipeline.data.order import SetOrder
from pipeline.data.split import BatchSplit, micro_batch_positions
from pipeline.data.stages import decode_stage
from pipeline.data.stream import DataSettings, train_stream
from shards.errors import DataError
from shards.format.schema import Sample
from shards.format.tar import members
from tests.shards.raw import SAMPLE, panoptic_ids

CROP = 96
GLOBAL = 8
PLAIN = DataSettings(crop=CROP, augment="none")
JITTER = DataSettings(crop=CROP)


def batches(store, count, settings=JITTER, task="panoptic", seed=5, position=0, split=None):
    """Return the first `count` batches of a stream in this process."""
    split = split or BatchSplit(GLOBAL, 4)
    return list(islice(train_stream(settings, [store], task, seed, position, split), count))


def fingerprints(stream) -> dict[int, tuple]:
    """Return every sample as bytes, by position."""
    found = {}
    for batch in stream:
        for b, position in enumerate(batch.positions):
            assert position not in found
            image, size = batch.images[b].numpy().tobytes(), tuple(batch.sizes[b].tolist())
            entries = entries_of(batch, b, np.s_[:])
            found[position] = (batch.keys[b], batch.epochs[b], image, size, entries)
    return found


def sampled(side: int, longer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return output pixels and the source pixels they show, if the longer side becomes CROP.

    Pixels whose center lies halfway between two source pixels are left out.
    """
    length = round(side * CROP / longer)
    centers = (2 * np.arange(length) + 1) * side  # in the source, in units of 1/(2·length)
    decided = np.flatnonzero(centers % (2 * length))
    return decided, centers[decided] // (2 * length)


def shown(shape: tuple[int, int]) -> tuple[tuple, tuple]:
    """Return indices of the same pixels into the crop and into the raw map [H, W]."""
    rows, columns = (sampled(side, max(shape)) for side in shape)
    return np.ix_(rows[0], columns[0]), np.ix_(rows[1], columns[1])


def entries_of(batch, b: int, where: tuple) -> list[tuple[int, bytes]]:
    """Return category and mask of every entry of image b, at the given pixels of the crop."""
    return sorted(
        (category, (batch.targets.maps[b, layer].numpy()[where] == value).tobytes())
        for category, layer, value in zip(
            *(part[b].tolist() for part in batch.targets[1:]), strict=True
        )
        if category >= 0
    )


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_batches_have_the_shapes_and_types_of_the_contract(train_set, task):
    for batch in batches(train_set, 5, task=task):
        count = batch.targets.categories.shape[1]
        assert batch.images.shape == (4, 3, CROP, CROP)
        assert batch.targets.maps.shape[::2] == (4, CROP)
        assert batch.targets.maps.shape[3] == CROP
        assert {part.shape for part in batch.targets[1:]} == {(4, count)}
        assert batch.sizes.shape == (4, 2)
        assert (batch.images.dtype, batch.targets.maps.dtype) == (torch.uint8, torch.uint8)
        assert {part.dtype for part in (*batch.targets[1:], batch.sizes)} == {torch.int64}
        assert all(type(key) is str for key in batch.keys)
        padding = batch.targets.categories < 0
        assert (batch.targets.layer[padding] == 0).all()
        assert (batch.targets.layer < batch.targets.maps.shape[1]).all()
        for image, maps, (height, width) in zip(
            batch.images, batch.targets.maps, batch.sizes, strict=True
        ):
            assert (image[:, height:] == 128).all()
            assert (image[:, :, width:] == 128).all()
            assert maps[:, height:].sum() == maps[:, :, width:].sum() == 0


def test_samples_come_in_the_order_of_the_pure_function(train_set):
    found = fingerprints(batches(train_set, 7))
    assert sorted(found) == list(range(28))
    fingerprint = train_set.manifest.fingerprint
    for position, (key, epoch, *_) in found.items():
        order = SetOrder(train_set.shard_sizes, 5, fingerprint).epoch(position // 10)
        assert key == train_set.index.key[order[position % 10]]
        assert epoch == position // 10


@pytest.mark.parametrize(
    ("world", "micro"),
    [(1, 8), (1, 1), (2, 4), (2, 2), (4, 1), (8, 1), (1, 3), (3, 1), (3, 2), (3, 8), (7, 4)],
)
def test_a_sample_is_the_same_bytes_on_any_rank(train_set, world, micro):
    steps = 3  # past the first epoch
    found = {}
    for rank in range(world):
        split = BatchSplit(GLOBAL, micro, world, rank)
        part = fingerprints(batches(train_set, steps * len(split.sizes), split=split))
        assert not found.keys() & part.keys()
        found |= part
    assert found == fingerprints(batches(train_set, steps * GLOBAL // 4))


@pytest.mark.parametrize("position", [0, 8, 16])
def test_a_stream_from_a_position_is_the_tail(train_set, position):
    whole = fingerprints(batches(train_set, 8))
    tail = fingerprints(batches(train_set, 8 - position // 4, position=position))
    assert tail == {p: value for p, value in whole.items() if p >= position}


def test_a_resumed_run_on_another_number_of_ranks_is_the_same_to_the_bit(train_set):
    """4, 2, 5, then 1 rank, with one or two loader processes each, starting inside an epoch.

    Every rank gets its slices of the global batches in order. Together they have the pixels and
    the truth that one process without loader processes gets.
    """
    size, steps, start = 12, 2, 36
    found, position = {}, start
    for world, micro in ((4, 1), (2, 3), (5, 2), (1, 6)):
        for rank in range(world):
            split = BatchSplit(size, micro, world, rank)
            stream = train_stream(JITTER, [train_set], "panoptic", 5, position, split)
            part = list(islice(loader(stream, 1 + rank % 2), steps * len(split.sizes)))
            positions = islice(micro_batch_positions(position, split), len(part))
            assert [b.positions for b in part] == [list(p) for p in positions]
            found |= fingerprints(part)
        position += steps * size
    split = BatchSplit(size, size)
    plain = fingerprints(batches(train_set, 4 * steps, position=start, split=split))
    assert [found[p] for p in range(start, position)] == list(plain.values())


def test_another_epoch_or_seed_is_another_view_of_the_sample(train_set):
    settings = DataSettings(crop=CROP, scale=[1.0, 2.0])
    by_key = {}
    for seed in (5, 6):
        stream = batches(train_set, 10, settings, seed=seed)
        for key, epoch, image, *_ in fingerprints(stream).values():
            by_key.setdefault(key, {})[seed, epoch] = image
    assert len(by_key) == 10
    for views in by_key.values():
        assert len(views) == 8
        assert len(set(views.values())) == 8


def test_panoptic_batches_show_the_raw_maps(train_set):
    """Without augmentation, every pixel has the category of the publisher's PNG."""
    document = json.loads((SAMPLE / "annotations/panoptic_train2017.json").read_text())
    raw = {entry["file_name"][:-4]: entry["segments_info"] for entry in document["annotations"]}
    seen = set()
    for batch in batches(train_set, 5, PLAIN):
        for b, key in enumerate(batch.keys):
            ids = panoptic_ids(SAMPLE / "annotations/panoptic_train2017" / f"{key}.png")
            in_crop, in_map = shown(ids.shape)
            assert entries_of(batch, b, in_crop) == sorted(
                (train_set.manifest.taxonomy.index(s["category_id"]), mask.tobytes())
                for s in raw[key] if not s["iscrowd"]
                for mask in [ids[in_map] == s["id"]]
            )  # fmt: skip
            seen.add(key)
    assert len(seen) == 10


def area_weights(source: int, target: int) -> np.ndarray:
    """Return the fraction [target, source] of each output pixel that a source pixel covers."""
    edges = np.arange(target + 1)[:, None] * source / target
    low, high = np.arange(source), np.arange(source) + 1
    overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return overlap.clip(0) * target / source


def test_images_of_batches_are_the_raw_photographs(train_set):
    for batch in batches(train_set, 3, PLAIN):
        for b, key in enumerate(batch.keys):
            picture = np.asarray(Image.open(SAMPLE / f"train2017/{key}.jpg").convert("RGB"))
            sizes = zip(picture.shape, batch.sizes[b].tolist(), strict=False)
            rows, columns = (area_weights(*pair) for pair in sizes)
            expected = np.einsum("ih,hwc,jw->cij", rows, picture, columns, optimize=True)
            image = batch.images[b, :, : len(rows), : len(columns)].numpy()
            assert np.abs(image - expected).max() <= 1


def test_instance_batches_show_the_masks_of_pycocotools(train_set):
    with contextlib.redirect_stdout(None):
        coco = COCO(SAMPLE / "annotations/instances_train2017.json")
    names = {image["file_name"][:-4]: image["id"] for image in coco.dataset["images"]}
    instances = 0
    for batch in batches(train_set, 5, PLAIN, task="instance"):
        for b, key in enumerate(batch.keys):
            image = coco.imgs[names[key]]
            in_crop, in_map = shown((image["height"], image["width"]))
            annotations = coco.loadAnns(coco.getAnnIds(names[key], iscrowd=False))
            assert entries_of(batch, b, in_crop) == sorted(
                (
                    train_set.manifest.taxonomy.index(a["category_id"]),
                    coco.annToMask(a)[in_map].astype(bool).tobytes(),
                )
                for a in annotations
            )
            instances += len(annotations)
    assert instances > 20


def test_keep_empty_keeps_segments_that_the_crop_has_cut_away(train_set):
    kept = batches(train_set, 5, DataSettings(crop=CROP, scale=[2.0, 2.0]))
    dropped = batches(train_set, 5, DataSettings(crop=CROP, scale=[2.0, 2.0], keep_empty=False))
    without = fingerprints(dropped)
    empty = 0
    for position, (key, *_, entries) in fingerprints(kept).items():
        visible = [entry for entry in entries if any(entry[1])]
        assert without[position][-1] == visible
        blob = train_set.read(train_set.index.key.index(key))
        listed = json.loads(members(blob)["json"])["segments"]
        assert len(entries) == sum(not s["iscrowd"] for s in listed)
        empty += len(entries) - len(visible)
    assert empty > 10


def raw_sample(image: bytes, size: tuple[int, int]) -> dict:
    """A sample as the source yields it, whose json and map are of `size` (width, height)."""
    width, height = size
    truth = np.zeros((height, width), np.uint8)
    stored = Sample(
        *("a", image, "jpg", "a.jpg", "coco", "7", width, height), segments=[], segments_map=truth
    )
    return {"key": "a", "stored": stored}


def test_an_image_that_is_not_what_the_json_says_names_the_sample():
    picture = io.BytesIO()
    Image.new("RGB", (8, 6)).save(picture, "JPEG")
    sample = decode_stage(raw_sample(picture.getvalue(), (8, 6)), "panoptic", (True,))
    assert sample["image"].shape == (6, 8, 3)
    with pytest.raises(DataError, match="a: the image has 8x6 pixels, its truth 6x8"):
        decode_stage(raw_sample(picture.getvalue(), (6, 8)), "panoptic", (True,))
    with pytest.raises(DataError, match="a: the image has no readable header"):
        decode_stage(raw_sample(b"no image", (8, 6)), "panoptic", (True,))


def test_augmentation_draws_only_from_seed_epoch_and_key(train_set):
    torch.manual_seed(0)
    np.random.seed(0)
    one = fingerprints(batches(train_set, 2))
    torch.manual_seed(1)
    np.random.seed(1)
    assert fingerprints(batches(train_set, 2)) == one
