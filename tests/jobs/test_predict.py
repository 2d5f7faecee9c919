"""The files of `evaluate` and `predict`, from an untrained network, read by other libraries."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from jobs.score_tables import unpredicted
from pipeline.data.store import Store
from pipeline.run import checkpoint
from pipeline.run.folder import best_step, scores_path
from pipeline.settings import EvaluationSettings
from shards.files import write_json
from tests.jobs import small
from tests.shards.raw import SAMPLE

PHOTOS = sorted((SAMPLE / "val2017").glob("*.jpg"))
CATEGORIES = {
    category["id"]: category
    for category in json.loads((SAMPLE / "annotations/panoptic_val2017.json").read_text())[
        "categories"
    ]
}


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    """A folder with an untrained run, and the outcome of predicting the validation photographs."""
    folder = tmp_path_factory.mktemp("predict")
    small.untrained(folder, photographs)
    command = ["predict", small.NAME, str(SAMPLE / "val2017"), "--out", "seen"]
    outcome = small.call(folder, *command)
    assert outcome.code == 0, outcome.err
    return folder, outcome


@pytest.fixture(scope="module")
def seen(work):
    return work[0] / "seen"


@pytest.fixture(scope="module")
def panoptic(seen):
    return json.loads((seen / "panoptic.json").read_text())


def test_predict_prints_the_numbers_of_images_and_segments(work, panoptic):
    found = sum(len(entry["segments_info"]) for entry in panoptic["annotations"])
    assert found >= len(PHOTOS), "without thresholds, the network predicts segments in every image"
    assert f"{len(PHOTOS)} images, {found} segments: seen" in work[1].out


def test_overlays_have_the_size_of_the_photographs(seen):
    for photo in PHOTOS:
        picture = Image.open(seen / f"{photo.stem}.png")
        original = Image.open(photo)
        assert picture.size == original.size
        assert (np.asarray(picture) != np.asarray(original.convert("RGB"))).mean() > 0.1


def test_panoptic_json_describes_its_pngs(seen, panoptic):
    """COCO's panoptic format: id = R + 256 G + 65536 B; areas and boxes are those of the PNG."""
    assert [image["id"] for image in panoptic["images"]] == [photo.stem for photo in PHOTOS]
    assert {c["id"]: c["name"] for c in panoptic["categories"]} == {
        c["id"]: c["name"] for c in CATEGORIES.values()
    }
    for image, entry, photo in zip(
        panoptic["images"], panoptic["annotations"], PHOTOS, strict=True
    ):
        assert (image["width"], image["height"]) == Image.open(photo).size
        assert image["file_name"] == photo.name
        assert entry["image_id"] == image["id"]
        pixels = np.asarray(Image.open(seen / "panoptic" / entry["file_name"]), np.int64)
        ids = pixels @ [1, 256, 65536]
        segments = {segment["id"]: segment for segment in entry["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        for number, segment in segments.items():
            rows, columns = np.nonzero(ids == number)
            left, top = columns.min(), rows.min()
            box = [left, top, columns.max() - left + 1, rows.max() - top + 1]
            assert segment["area"] == len(rows)
            assert segment["bbox"] == box
            assert segment["isthing"] == CATEGORIES[segment["category_id"]]["isthing"]
            assert segment["iscrowd"] == 0
            assert 0 <= segment["score"] <= 1


def test_pycocotools_reads_the_instances(seen, panoptic):
    truth = COCO()
    truth.dataset = {
        "images": panoptic["images"],
        "categories": panoptic["categories"],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes(str(seen / "instances.json"))
    assert set(results.getImgIds()) == {photo.stem for photo in PHOTOS}
    entries = json.loads((seen / "instances.json").read_text())
    assert len(results.anns) == len(entries) >= len(PHOTOS)
    sizes = {image["id"]: [image["height"], image["width"]] for image in panoptic["images"]}
    for entry in entries:
        assert CATEGORIES[entry["category_id"]]["isthing"]
        assert entry["segmentation"]["size"] == sizes[entry["image_id"]]
        rows, columns = np.nonzero(rle.decode(entry["segmentation"]))
        left, top = columns.min(), rows.min()
        assert entry["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]
        assert 0 <= entry["score"] <= 1


def test_one_image_gives_what_the_folder_gave(work, seen):
    folder, _ = work
    run = str(folder / "runs" / small.NAME)
    outcome = small.call(folder, "predict", run, str(PHOTOS[0]), "--out", "one")
    assert outcome.code == 0, outcome.err
    for name in (f"{PHOTOS[0].stem}.png", f"panoptic/{PHOTOS[0].stem}.png"):
        assert (folder / "one" / name).read_bytes() == (seen / name).read_bytes()
    assert len(json.loads((folder / "one/panoptic.json").read_text())["annotations"]) == 1


def test_evaluate_writes_scores_pictures_and_summary(work):
    folder, _ = work
    run = folder / "runs" / small.NAME
    outcome = small.call(folder, "evaluate", small.NAME)
    assert outcome.code == 0, outcome.err
    scores = json.loads((run / "evaluations/step-000000000.json").read_text())
    rows = scores["classes"]
    assert [row["name"] for row in rows][:2] == ["person", "bicycle"]
    assert len(rows) == len(CATEGORIES)
    assert f"{scores['mIoU']:.2f}" in outcome.out
    printed = json.loads(small.call(folder, "evaluate", small.NAME, "--json").out)
    assert {"step": 0, **printed} == scores
    Image.open(run / "pictures/step-000000000.png").verify()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["PQ"] == scores["PQ"]
    assert summary["pictures"] == ["step-000000000.png"]
    assert summary["checkpoint"] == "step-000000000-a01"


def test_evaluate_on_part_of_the_data_leaves_the_scores_of_the_step(work, photographs):
    folder, _ = work
    run = folder / "runs" / small.NAME
    before = {path.name for path in (run / "evaluations").glob("step-*")}
    command = ["evaluate", small.NAME, "--data", str(photographs / "train"), "--images", "3"]
    assert small.call(folder, *command).code == 0
    scores = json.loads((run / "evaluations/train-3-step-000000000.json").read_text())
    assert scores["images"] == 3
    assert {path.name for path in (run / "evaluations").glob("step-*")} == before


def test_evaluate_never_replaces_the_scores_of_the_run(photographs, tmp_path):
    """The loop scored 2 images; all 5 are another measurement, and belong in another file."""
    run = small.untrained(tmp_path, photographs, "evaluation.images=2")
    assert small.call(tmp_path, "evaluate", small.NAME, "--images", "2").code == 0
    path = scores_path(run, 0)
    of_run = json.loads(path.read_text())
    assert of_run["images"] == 2
    assert of_run["data"] == Store(photographs / "val").manifest.fingerprint
    assert small.call(tmp_path, "evaluate", small.NAME).code == 0
    assert json.loads(path.read_text()) == of_run
    assert json.loads((run / "evaluations/val-5-step-000000000.json").read_text())["images"] == 5
    write_json(path, of_run | {"PQ": 99.0})  # as the loop of other versions scored it
    assert small.call(tmp_path, "evaluate", small.NAME, "--images", "2").code == 0
    assert json.loads(path.read_text())["PQ"] == 99.0
    assert json.loads((run / "evaluations/val-2-step-000000000.json").read_text())["PQ"] < 99
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["PQ"], summary["images"]) == (99.0, 2)


def test_sets_of_equal_names_have_files_of_their_own(photographs, work, tmp_path):
    shutil.copytree(photographs / "train", tmp_path / "val")
    for data in (photographs / "val", tmp_path / "val"):
        words = ["evaluate", small.NAME, "--data", str(data), "--images", "1"]
        assert small.call(work[0], *words).code == 0
    found = (work[0] / "runs" / small.NAME / "evaluations").glob("val-*1-step-000000000.json")
    assert sorted(json.loads(path.read_text())["data"] for path in found) == sorted(
        Store(photographs / name).manifest.fingerprint for name in ("train", "val")
    )


def test_classes_that_were_never_predicted_are_named(photographs, tmp_path):
    small.untrained(tmp_path, photographs, "evaluation.segment.object_threshold=0.9")
    outcome = small.call(tmp_path, "evaluate", small.NAME)
    assert outcome.code == 0, outcome.err
    rows = json.loads(small.call(tmp_path, "evaluate", small.NAME, "--json").out)["classes"]
    true = [row for row in rows if row["images"]]
    assert true
    assert not any(row["predicted_in"] for row in rows)
    best = max(row["highest_score"] for row in rows)
    assert 0 < best < 0.9
    assert f"never predicted: {len(true)} of the {len(true)} classes that occur" in outcome.out
    assert f"nothing was predicted: the highest score is {best:.4g}, and the thr" in outcome.out


@pytest.mark.parametrize(
    ("highest", "reason"),
    [
        (0.41, "the highest score is 0.41, and the threshold is 0.8; a threshold of 0.4 would"),
        (0.0, "of these classes, no query predicts one at any score"),
        (0.9, "the queries above the threshold of 0.8 win too few pixels of their masks"),
    ],
)
def test_a_network_that_finds_only_background_is_explained(highest, reason):
    rows = [
        {"name": "sky", "images": 4, "predicted_in": 4, "highest_score": 0.99},
        {"name": "cat", "images": 2, "predicted_in": 0, "highest_score": highest},
        {"name": "absent", "images": 0, "predicted_in": 0, "highest_score": 0.7},
    ]
    first, second = unpredicted(rows, EvaluationSettings(), ["panoptic", "semantic"])
    assert first.startswith("never predicted: 1 of the 2 classes that occur, by their highest sco")
    assert first.endswith(f"score: cat ({highest:g})")
    assert reason in second


def test_a_damaged_checkpoint_is_not_scored(work, tmp_path):
    """With one flipped bit in a tensor, the checkpoint would load and give other scores."""
    run = shutil.copytree(work[0] / "runs" / small.NAME, tmp_path / "runs" / "flipped")
    state = run / "checkpoints/step-000000000-a01" / checkpoint.STATE
    content = bytearray(state.read_bytes())
    content[-3] ^= 1
    state.write_bytes(content)
    for command in (["evaluate", "flipped"], ["predict", "flipped", str(PHOTOS[0]), "--out", "o"]):
        outcome = small.call(tmp_path, *command)
        assert outcome.code == 2
        assert "step-000000000-a01: the checkpoint is damaged" in small.complaint(outcome)
        assert "--checkpoint" in small.complaint(outcome)


def test_of_equal_scores_the_last_is_best(tmp_path):
    """A network that still scores 0 has learned more than at its start."""
    for step, quality in {0: 0.0, 10: 0.0}.items():
        write_json(scores_path(tmp_path, step), {"step": step, "PQ": quality})
    assert best_step(tmp_path, "panoptic") == 10


def test_scores_of_other_images_are_not_compared(tmp_path):
    of_steps = {0: (99.0, 4, "a"), 10: (50.0, 5, "a"), 20: (40.0, 5, "a"), 30: (98.0, 5, "b")}
    for step, (quality, images, data) in of_steps.items():
        scores = {"step": step, "PQ": quality, "images": images, "data": data}
        write_json(scores_path(tmp_path, step), scores)
    assert best_step(tmp_path, "panoptic") == 30
    assert best_step(tmp_path, "panoptic", among=(0, 10, 20)) == 10
