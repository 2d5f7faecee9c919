"""`try`: what is found in a folder, what is chosen and why, and a small run from end to end."""

import json
import re
import shlex

import numpy as np
import pytest

from jobs import config as configs
from jobs.tryout import choices
from jobs.tryout.choices import Choice, Facts, Machine, choose, choose_steps, choose_weights
from jobs.tryout.detect import detect
from jobs.tryout.tryout import tryout
from jobs.tryout.verdict import verdict, warnings_of
from shards.build.build import build_sets
from shards.errors import DataError, UsageError
from shards.format.manifest import Manifest
from shards.sources.coco_item import CocoFiles
from tests.jobs import small
from tests.shards import raw, raw_folder, raw_maps
from tests.shards import raw_outlines as outlines

FACTS = Facts(("instance",), 400, 40, 256, 320, 10.0, 78)
CPU, GPU = Machine("cpu", 2), Machine("cuda", 2)


def dog(name):
    """Return an image with a dog in the sky, as panoptic segment and as instance."""
    ids = np.full((24, 32), 5)
    ids[4:20, 4:20] = 6
    return raw.RawImage(name, ids=ids, categories={5: 90, 6: 7}, masks=[(7, ids == 6, 0)])


def coco(root, split="val", count=3, **kinds):
    return raw.write(root, [dog(f"{split}{n}.png") for n in range(count)], split, **kinds)


def loose(root):
    """Move COCO's files out of the published layout: train.json and photos/."""
    coco(root, "train", panoptic=False)
    (root / "annotations/instances_train2017.json").rename(root / "labels.json")
    (root / "train2017").rename(root / "photos")
    return root


FOLDERS = {
    "instances": (loose, "coco", ("instance",), None),
    "panoptic": (lambda root: coco(coco(root), "train"), "coco", None, "val"),
    "label maps": (lambda root: raw_maps.write(raw_folder, root), "folder", None, "val"),
    "labelme": (lambda root: outlines.labelme(root, 3), "labelme", ("instance",), None),
    "yolo": (lambda root: outlines.yolo(root, 3), "yolo", ("instance",), None),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_a_folder_holds_is_found_and_built(kind, tmp_path):
    make, source, tasks, val = FOLDERS[kind]
    found = detect(make(tmp_path / "raw"))
    assert (found.source, found.val and found.val.split) == (source, val)
    for options in found.options(tmp_path / "out"):
        build_sets(options, report=lambda _: None)
    sets = [Manifest.load(tmp_path / "out" / name) for name in found.sets]
    assert [one.samples > 0 for one in sets] == [True, True]
    assert all(one.tasks == (tasks or ("panoptic", "instance", "semantic")) for one in sets)


def test_own_panoptic_and_instance_files_of_two_splits(tmp_path):
    root = coco(coco(tmp_path), "train")
    for split in ("train", "val"):
        for kind in ("panoptic", "instances"):
            path = root / f"annotations/{kind}_{split}2017.json"
            path.rename(root / f"{split}-{kind}.json")
        (root / f"{split}2017").rename(root / split)
    found = detect(root)
    assert found.val
    files, val = found.train.root, found.val.root
    assert isinstance(files, CocoFiles)
    assert isinstance(val, CocoFiles)
    assert (files.images, files.panoptic) == (root / "train", root / "train-panoptic.json")
    assert files.maps == root / "annotations/panoptic_train2017"
    assert (found.sets[1], val.instances) == ("val", root / "val-instances.json")


def no_labels(root):
    outlines.image(root / "a.png", 0)
    outlines.image(root / "b.png", 1)


def one_image(root):
    outlines.labelme(root, 1)


def no_images(root):
    for path in outlines.labelme(root, 2).glob("*.png"):
        path.unlink()


def twice(root):
    path = loose(root) / "labels.json"
    (root / "others.json").write_bytes(path.read_bytes())


def two_kinds(root):
    outlines.yolo(loose(root), 2)
    outlines.labelme(root, 2)


def boxes(root):
    outlines.yolo(root, 2)
    for path in root.glob("labels/train/*.txt"):
        path.write_text("0 0.5 0.5 0.1 0.1\n")


def coco_boxes(root):
    path = loose(root) / "labels.json"
    document = json.loads(path.read_text())
    for entry in document["annotations"]:
        entry["segmentation"] = []
    path.write_text(json.dumps(document))


def damaged(root):
    path = loose(root) / "labels.json"
    path.write_bytes(path.read_bytes()[:-9])


def missing_images(root):
    loose(root)
    (root / "photos").rename(root / "other")
    for path in (root / "other").iterdir():
        path.rename(path.with_name(f"x-{path.name}"))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (no_labels, "the folder has 2 images and no labels; draw the outlines"),
        (one_image, "only one photograph.*; add photographs with labels"),
        (no_images, r"has LabelMe JSON \(0.json, 1.json\), but no image; add the images"),
        (twice, "labels.json, others.json both have the instances of the split train; remove one"),
        (two_kinds, "labels of several kinds: COCO JSON .* and LabelMe .*; move those"),
        (boxes, "the label files hold boxes, not outlines; export outlines"),
        (coco_boxes, "labels.json: the file has boxes and no outlines; export outlines"),
        (damaged, r"labels.json: at byte \d+: .*; download the file again"),
        (missing_images, "labels.json: it names 'train0.png', which is not below .*; add the"),
        (lambda root: root.mkdir(), "the folder has no image; add the images"),
    ],
)
def test_a_bad_folder_gets_one_sentence(make, complaint, tmp_path):
    make(tmp_path / "raw")
    outcome = small.call(tmp_path, "try", "raw")
    assert outcome.code == 3, outcome
    assert re.search(complaint, small.complaint(outcome)), outcome.err


def test_wrong_options(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        detect(tmp_path / "none")
    with pytest.raises(UsageError, match="does not exist"):
        choose_weights(str(tmp_path / "none.pth"))
    (tmp_path / "mine.pth").touch()
    with pytest.raises(UsageError, match="does not tell which backbone it is"):
        choose_weights(str(tmp_path / "mine.pth"))
    root = outlines.labelme(tmp_path / "raw", 3)
    with pytest.raises(UsageError, match="would be in one folder"):
        tryout(root, root / "out", None, 1)
    for name in ("a", "b", "c"):
        raw_folder.write(tmp_path / "maps", name, name, 0)
    with pytest.raises(DataError, match="not clear"):
        detect(tmp_path / "maps")


def settings_of(chosen):
    return {key: value for choice in chosen for key, value in choice.settings.items()}


def test_small_objects_are_enlarged_and_large_ones_reduced():
    small_objects = settings_of(choose(FACTS, CPU))
    assert (small_objects["evaluation.short"], small_objects["data.crop"]) == (307, 160)
    assert small_objects["data.scale"] == [1.92, 3.0]  # 384 pixels in crops of 160
    large = settings_of(choose(FACTS._replace(short=480, long=640, object_side=60.0), CPU))
    assert (large["evaluation.short"], large["data.crop"]) == (96, 128)
    assert settings_of(choose(FACTS, GPU))["data.crop"] == 384
    assert settings_of(choose(FACTS._replace(object_side=None, objects=0), CPU))["data.crop"] == 160


def test_queries_follow_the_objects_and_say_if_they_are_too_few():
    assert settings_of(choose(FACTS, CPU))["model.queries"] == 100
    assert settings_of(choose(FACTS._replace(objects=5), CPU))["model.queries"] == 16
    crowded = choose(FACTS._replace(objects=150), CPU)
    assert any("some objects will be missed" in choice.reason for choice in crowded)


def test_steps_fill_the_minutes():
    chosen = choose(FACTS, CPU)
    short = settings_of([choose_steps(FACTS, chosen, 0.5, 10)])["trainer.steps"]
    long = settings_of([choose_steps(FACTS, chosen, 0.5, 20)])["trainer.steps"]
    assert 500 < short < 1020
    assert long - short == pytest.approx(0.85 * 600 / 0.5, abs=20)
    assert settings_of([choose_steps(FACTS, chosen, 9, 0.1)])["trainer.steps"] == 20


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("weights", [None, "swin_tiny_patch4.pth", "resnet50-0676ba61.pth"])
def test_the_choices_are_a_valid_config(machine, weights, tmp_path):
    if weights:
        (tmp_path / weights).touch()
    chosen = [choose_weights(weights and str(tmp_path / weights)), *choose(FACTS, machine)]
    chosen.append(choose_steps(FACTS, chosen, 0.5, 10))
    preset = str(configs.preset_path("tiny")) if not weights else choices.PRETRAINED
    overrides = [override for choice in chosen for override in choice.overrides]
    config = configs.load(str(preset), ["data.train=a", "data.val=b", *overrides], gpus=2)
    assert config.task == "instance"
    assert config.model.backbone == (weights or "resnet")[: len(config.model.backbone)]


def test_what_cannot_be_good_is_said():
    few = FACTS._replace(train=12, val=2)
    lines = warnings_of(few, [Choice({"trainer.steps": 20}, "")])
    assert [re.sub(r"\D.*", "", line) for line in lines] == ["12", "2", "20"]
    assert not warnings_of(FACTS, [Choice({"trainer.steps": 1000}, "")])
    assert "AP50 3.0: barely more than nothing" in verdict({"AP50": 3.0}, FACTS)
    assert "AP50 60.0: good" in verdict({"AP50": 60.0}, FACTS)
    panoptic = FACTS._replace(tasks=("panoptic",), val=3)
    said = verdict({"PQ": 43.0, "PQ_th": 0.0}, panoptic)
    assert "PQ_th 0.0, of 3 images only: barely" in said
    assert "PQ 43.0" in verdict({"PQ": 43.0, "PQ_th": None}, panoptic)


@pytest.mark.slow
def test_a_small_run_from_labels_to_report(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "FEWEST_STEPS", 10)
    outlines.labelme(tmp_path / "raw", 6)
    command = ["try", "raw", "--out", "out", "--minutes", "0.1"]
    dry = small.call(tmp_path, *command, "--dry-run")
    assert dry.code == 0, dry.err
    assert not (tmp_path / "out/runs").exists()
    outcome = small.call(tmp_path, *command)
    assert outcome.code == 0, outcome.err
    said = outcome.out
    for part in ("LabelMe JSON", "1 of 6 photographs are held out", "few", "AP50", "next"):
        assert part in said
    (printed,) = [line for line in said.splitlines() if "./launch.sh train" in line]
    run = configs.load_run(tmp_path / "out/runs/try")
    assert configs.load("tiny", shlex.split(printed)[3:]) == run  # the command is the run
    assert run.trainer.steps == 10
    assert "</html>" in (tmp_path / "out/report.html").read_text()
    commands = [line.split()[1] for line in said.splitlines() if line.startswith("  ./launch.sh")]
    assert commands == ["build", "train", "predict", "evaluate", "try"]
    again = small.call(tmp_path, *command)
    assert again.code == 0, again.err
    assert "is finished (10 steps)" in again.out
    other = small.call(tmp_path, *command[:-1], "5")
    assert (other.code, "holds a run with other options" in other.err) == (2, True)
