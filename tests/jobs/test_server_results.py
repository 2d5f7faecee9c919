"""`evaluate --results`: what it writes is read back by the servers' rules, and scores the same."""

import contextlib
import io
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jobs.outputs import MARK, whole_folder
from jobs.results.results import written_results
from pipeline.data.store import Store
from pipeline.score.inference import Result
from pipeline.score.scores import Scores
from shards.errors import UsageError
from shards.format.published import published_ids
from shards.format.schema import Sample
from tests.jobs import small
from tests.pipeline.score.test_panoptic import by_definition
from tests.shards import raw_ade20k, raw_cityscapes, raw_maps
from tests.shards.raw import SAMPLE


def guess(sample: Sample, things: tuple[bool, ...], rng: np.random.Generator) -> Result:
    """Return predictions that are partly right: the truth with noise, shifts, and wrong classes."""
    shape, classes = (sample.height, sample.width), len(things)
    semantic = np.maximum(sample.classes().astype(np.int64) - 1, 0)
    semantic[rng.random(shape) < 0.2] = rng.integers(classes)
    ids, segments = np.zeros(shape, np.int32), []
    for n, entry in sample.panoptic():
        if not entry.iscrowd and rng.random() < 0.8:
            category = entry.category if rng.random() < 0.7 else int(rng.integers(classes))
            ids[np.roll(sample.segments_map == n, rng.integers(3), 1) & (ids == 0)] = n
            segments.append({"id": n, "category": category, "isthing": things[category]})
    present = set(np.unique(ids).tolist())
    segments = [s | {"score": rng.random()} for s in segments if s["id"] in present]
    masks, categories = [], []
    for entry in [e for e in sample.instances_or_things(things) if not e.iscrowd]:
        mask = sample.instance_layers[entry.layer] == entry.value
        for shift in range(int(rng.integers(3))):
            masks.append(np.roll(mask, shift, 1))
            categories.append(entry.category)
    masks.append(np.zeros(shape, bool))  # an instance without pixels counts in COCO's format
    categories.append(things.index(True))
    scores = rng.random(len(masks)).astype(np.float32)
    highest = np.zeros(classes, np.float32)
    return Result(ids, segments, scores, np.array(categories), masks, semantic, highest)


def written(folder: Path, out: Path, seed: int = 0) -> tuple[Store, dict]:
    """Write the results of guesses for a set, and return the set and their scores."""
    store = Store(folder)
    things = store.manifest.taxonomy.things
    rng = np.random.default_rng(seed)
    scores = Scores(store.manifest.taxonomy, store.manifest.tasks)
    with written_results(out, store, []) as results:
        for number in range(len(store)):
            sample = store.load(number)
            result = guess(sample, things, rng)
            scores.update(result, sample, number)
            with mock.patch("jobs.results.results.rank_and_world", lambda n=number: (n % 2, 2)):
                results.write(number, np.zeros(0), sample, result)
            assert not out.exists()
    assert (out / MARK).is_file()
    return store, scores.result()


def read_ids(path: Path) -> np.ndarray:
    """Return the ids of a PNG of COCO's panoptic format."""
    red, green, blue = np.moveaxis(np.asarray(Image.open(path), np.int64), -1, 0)
    return red + 256 * green + 65536 * blue


def panoptic_scores(store: Store, out: Path, truth: Path, category: dict[int, int]) -> list[float]:
    """Return PQ of each class by the definition, from the files and the publisher's truth."""
    document = json.loads((out / "panoptic.json").read_text())
    ids = [store.load(number).image_id for number in range(len(store))]
    assert [str(entry["image_id"]) for entry in document["annotations"]] == ids
    by_image = {entry["image_id"]: entry for entry in document["annotations"]}
    raw = json.loads(truth.read_text())
    images = []
    for entry in raw["annotations"]:
        found = by_image.pop(entry["image_id"])
        ids = read_ids(out / "panoptic" / found["file_name"])
        predicted = [{"id": s["id"], "category": category[s["category_id"]]}
                     for s in found["segments_info"]]  # fmt: skip
        real = [s | {"category": category[s["category_id"]]} for s in entry["segments_info"]]
        images.append((ids, predicted, read_ids(truth.with_suffix("") / entry["file_name"]), real))
    assert not by_image
    count = by_definition(images, store.manifest.taxonomy.things)
    rows = zip(count["iou"], count["tp"], count["fp"], count["fn"], strict=True)
    return [100 * iou / (tp + fp / 2 + fn / 2) if tp + fp + fn else -1 for iou, tp, fp, fn in rows]


def confusion_iou(pairs: list[tuple[np.ndarray, np.ndarray]], ids: list[int]) -> float:
    """Return mIoU from maps of the publisher's ids; other values of the truth are ignored."""
    values = []
    for id in ids:
        hit = sum(int(((p == id) & (t == id)).sum()) for p, t in pairs)
        either = sum(int((((p == id) & np.isin(t, ids)) | (t == id)).sum()) for p, t in pairs)
        if any((t == id).any() for _, t in pairs):
            values.append(hit / either)
    return 100 * float(np.mean(values))


def test_coco_reads_the_results_and_scores_them_the_same(photographs, tmp_path):
    store, scores = written(photographs / "val", tmp_path / "out")
    annotations = SAMPLE / "annotations"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations / "instances_val2017.json")
        found = truth.loadRes(str(tmp_path / "out/instances.json"))
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
    wanted = [-1 if scores[name] is None else scores[name] / 100 for name in names]
    assert evaluation.stats[:9].tolist() == pytest.approx(wanted, abs=1e-9)
    assert 0.1 < scores["AP"] / 100 < 0.9
    index = {c.id: n for n, c in enumerate(store.manifest.taxonomy.categories)}
    qualities = panoptic_scores(
        store, tmp_path / "out", annotations / "panoptic_val2017.json", index
    )
    rows = [-1 if row["PQ"] is None else row["PQ"] for row in scores["classes"]]
    assert qualities == pytest.approx(rows, abs=1e-9)
    assert 5 < scores["PQ"] < 95


def masks_of(list_file: Path) -> list[tuple[int, float, np.ndarray]]:
    """Return label, score, and mask of each instance of an image in Cityscapes' format."""
    found = []
    for line in list_file.read_text().splitlines():
        name, label, score = line.split(" ")
        assert not Path(name).is_absolute()
        path = (list_file.parent / name).resolve()
        found.append((int(label), float(score), np.asarray(Image.open(path)) != 0))
    return found


def test_cityscapes_reads_the_results(tmp_path):
    raw = raw_maps.write(raw_cityscapes, tmp_path / "raw")
    raw_maps.made(raw_cityscapes, raw, tmp_path / "set")
    out = tmp_path / "out"
    store, scores = written(tmp_path / "set/val", out)
    taxonomy = store.manifest.taxonomy
    rng, pairs = np.random.default_rng(0), []
    for number in range(len(store)):
        sample = store.load(number)
        result = guess(sample, taxonomy.things, rng)
        (list_file,) = (out / "instances").rglob(f"{sample.image_id}*.txt")
        found = masks_of(list_file)
        kept = [n for n, mask in enumerate(result.masks) if mask.any()]
        assert len(found) == len(kept) > 0
        for (label, score, mask), n in zip(found, kept, strict=True):
            assert label == taxonomy.categories[result.categories[n]].id
            assert score == float(result.scores[n])
            assert np.array_equal(mask, result.masks[n])
        (labels,) = (out / "semantic").rglob(f"{sample.image_id}*.png")
        truth = raw_maps.pixels(raw_cityscapes.maps(raw, "val", sample.image_id)[0])
        pairs.append((np.asarray(Image.open(labels)), truth))
        entry = json.loads((out / "panoptic.json").read_text())["annotations"][number]
        assert entry["image_id"] == sample.image_id
        assert np.array_equal(read_ids(out / "panoptic" / entry["file_name"]), result.panoptic)
        assert [s["category_id"] for s in entry["segments_info"]] == [
            taxonomy.categories[s["category"]].id for s in result.segments
        ]
    mean = confusion_iou(pairs, [c.id for c in taxonomy.categories])
    assert mean == pytest.approx(scores["mIoU"], abs=1e-9)
    assert not (out / "instances.json").exists()


def test_ade20k_reads_the_results(tmp_path):
    raw = raw_maps.write(raw_ade20k, tmp_path / "raw")
    raw_maps.made(raw_ade20k, raw, tmp_path / "set")
    store, scores = written(tmp_path / "set/val", tmp_path / "out")
    pairs = []
    for number in range(len(store)):
        id = store.load(number).image_id
        labels = np.asarray(Image.open(tmp_path / f"out/semantic/{id}.png"))
        assert labels.dtype == np.uint8
        assert labels.min() >= 1
        pairs.append((labels, raw_maps.pixels(raw_ade20k.maps(raw, "val", id)[0])))
    mean = confusion_iou(pairs, list(range(1, 151)))
    assert mean == pytest.approx(scores["mIoU"], abs=1e-9)


def test_classes_have_the_ids_of_their_publisher_in_any_order():
    names = ("car", "person", "rider", "truck", "bus", "train", "motorcycle", "bicycle")
    assert published_ids(names) == ("cityscapes", (26, 24, 25, 27, 28, 31, 32, 33))
    assert published_ids(("car", "person")) is None


def test_a_folder_is_replaced_only_if_the_command_wrote_it(tmp_path):
    out = tmp_path / "out"

    def write(text: str, fails: bool = False) -> None:
        with whole_folder(out, "--results", "a command", []) as folder:
            (folder / "sub").mkdir()
            (folder / "sub/a.txt").write_text(text)
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write("half", fails=True)
    assert not list(tmp_path.iterdir())
    write("one")
    write("two")
    with pytest.raises(ZeroDivisionError):
        write("half", fails=True)
    assert (out / "sub/a.txt").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="was changed since"):
        write("three")
    (out / "note.txt").unlink()
    (out / "sub/a.txt").write_text("edited")
    with pytest.raises(UsageError, match="was changed since"):
        write("three")
    assert (out / "sub/a.txt").read_text() == "edited"


def test_a_command_removes_what_killed_ones_left(tmp_path):
    with whole_folder(tmp_path / "out", "--results", "a command", []) as folder:
        partial = folder.name
    left = tmp_path / f"{partial.rpartition('-')[0]}-{2**22 + 7}"  # above the largest number
    left.mkdir()
    (left / MARK).write_text(json.dumps({"command": "a command", "files": {}}))
    with whole_folder(tmp_path / "out", "--results", "a command", []):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_evaluate_writes_the_results(photographs, tmp_path):
    small.untrained(tmp_path, photographs)
    words = ("evaluate", small.NAME, "--images", "2", "--results", "out")
    outcome = small.call(tmp_path, *words)
    assert outcome.code == 0, outcome.err
    assert "results for servers: out" in outcome.out
    document = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert len(document["annotations"]) == 2
    assert len(list((tmp_path / "out").rglob("*.png"))) == 4
    assert small.call(tmp_path, *words).code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    outcome = small.call(tmp_path, *words[:-1], "other")
    assert outcome.code == 2
    assert "--results" in small.complaint(outcome)
    assert "did not write" in small.complaint(outcome)
