"""Functions of the user in the stream: their arguments, and the mistakes that are named."""

from itertools import islice

import numpy as np
import pytest

from pipeline.data.loader import loader
from pipeline.data.split import BatchSplit
from pipeline.data.stages import load_stage, user_stage
from pipeline.data.stream import DataSettings, train_stream
from shards.errors import UsageError

HERE = "tests.pipeline.stages_for_tests"


def batches(store, *names, position=0, split=None, workers=0, count=3):
    settings = DataSettings(crop=64, augment="none", stages=[f"{HERE}:{name}" for name in names])
    split = split or BatchSplit(8, 4)
    stream = train_stream(settings, [store], "panoptic", 5, position, split)
    return list(islice(loader(stream, workers), count))


def images(found) -> dict[int, np.ndarray]:
    return {p: batch.images[b].numpy() for batch in found for b, p in enumerate(batch.positions)}


def test_a_stage_changes_image_and_truth_before_augmentation(train_set):
    plain, changed = batches(train_set), batches(train_set, "darken", "first_category_only")
    for before, after in zip(plain, changed, strict=True):
        assert after.keys == before.keys
        assert (after.targets.categories[:, 0] == before.targets.categories[:, 0]).all()
        assert after.targets.categories.shape[1] == 1
        assert (after.targets.maps == before.targets.maps).all()
        for b, (height, width) in enumerate(before.sizes.tolist()):
            inside = np.s_[b, :, :height, :width]
            ratio = after.images[inside].sum() / before.images[inside].sum()
            assert 0.15 < ratio < 0.95
            assert (after.images[b, :, height:] == 128).all()  # padded afterwards


def test_random_draws_of_a_stage_are_equal_on_any_rank_and_differ_between_epochs(train_set):
    whole = images(batches(train_set, "darken", split=BatchSplit(8, 8), count=3))
    for rank in range(2):
        part = images(batches(train_set, "darken", split=BatchSplit(8, 2, 2, rank), count=6))
        assert len(part) == 12
        for position, image in part.items():
            assert (image == whole[position]).all()
    by_key = {}
    for batch in batches(train_set, "darken", split=BatchSplit(8, 8), count=3):
        for b, key in enumerate(batch.keys):
            by_key.setdefault(key, []).append(batch.images[b].numpy())
    assert all(len({image.tobytes() for image in seen}) == len(seen) for seen in by_key.values())
    assert max(len(seen) for seen in by_key.values()) > 1


WRONG = {
    "drop": "the stage returned NoneType, not a dict; return the changed sample",
    "repeat": "the stage returned list, not a dict; return the changed sample",
    "another_key": "the stage changed key; leave key, position, epoch as they are",
    "as_float": r"the image is not uint8 \[H, W, 3\]",
    "half_the_image": r"the image has the size \(\d+, \d+\), but its maps have \(\d+, \d+\); give",
    "broken": r"KeyError: 'depth' \(.*stages_for_tests\.py:\d+\)",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_stage_is_named_with_the_sample(train_set, name):
    first = batches(train_set)[0].keys[0]
    with pytest.raises(
        UsageError, match=f"data.stages={HERE}:{name}: sample {first}: {WRONG[name]}"
    ):
        batches(train_set, name)


def test_a_stage_may_return_the_sample_without_random(train_set):
    plain, same = batches(train_set), batches(train_set, "no_random")
    assert all((a.images == b.images).all() for a, b in zip(plain, same, strict=True))


def test_a_stage_that_cannot_be_imported_is_an_error_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "unsound.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"unsound:f: ZeroDivisionError: .*unsound\.py:1"):
        load_stage("unsound:f")
    assert load_stage(f"{HERE}:darken").__name__ == "darken"


def test_an_error_of_a_stage_in_a_loader_process_names_the_stage(train_set):
    with pytest.raises(UsageError, match="stages_for_tests:broken: sample"):
        batches(train_set, "broken", workers=1)


def test_a_stage_that_returns_no_image_is_named():
    sample = {"key": "a", "position": 0, "epoch": 0}
    with pytest.raises(UsageError, match="sample a: the image is not uint8"):
        user_stage(sample, f"{HERE}:no_random", seed=1)
