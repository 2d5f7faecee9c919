"""`build coco` with files named one by one: the same shards as COCO's layout, or a clear error."""

import re
import shutil

import numpy as np
import pytest

from shards.format.manifest import Manifest
from tests.jobs import small
from tests.shards.build.test_build import tree
from tests.shards.raw import edit, sky, write

INSTANCES = ["--instances", "mine.json", "--images", "photos"]
PANOPTIC = ["--panoptic", "pan.json", "--maps", "maps", "--images", "photos"]


@pytest.fixture
def files(tmp_path):
    """Return a folder with the named files, and in raw/ the same set in COCO's layout."""
    cat, negative = sky("a.png"), sky("more/b.png")
    cat.masks.append((3, np.eye(24, 32, dtype=bool), 0))
    raw = write(tmp_path / "raw", [cat, negative])
    shutil.copytree(raw / "val2017", tmp_path / "photos")
    shutil.copytree(raw / "annotations/panoptic_val2017", tmp_path / "maps")
    for kind, name in (("instances", "mine"), ("panoptic", "pan")):
        shutil.copy(raw / f"annotations/{kind}_val2017.json", tmp_path / f"{name}.json")
    return tmp_path


def build(folder, *options):
    return small.call(folder, "build", "coco", "--jobs", "1", "--out", "out", *options)


@pytest.mark.parametrize(
    ("given", "tasks"),
    [
        (INSTANCES, "instance"),
        (PANOPTIC, "panoptic,semantic"),
        (INSTANCES + PANOPTIC, "panoptic,instance,semantic"),
    ],
)
def test_named_files_give_the_shards_of_the_same_set_in_cocos_layout(files, given, tasks):
    assert build(files, *given, "--split", "mine").code == 0
    options = ["--root", "raw", "--tasks", tasks]
    assert small.call(files, "build", "coco", "--out", "same", *options).code == 0
    ours, same = Manifest.load(files / "out/mine"), Manifest.load(files / "same/val")
    assert ours.shards == same.shards
    assert ours.fingerprint == same.fingerprint
    assert ours.tasks == same.tasks == tuple(tasks.split(","))
    assert ours.taxonomy.names == ("cat", "dog", "sky")[: 2 if given is INSTANCES else 3]


def test_a_task_leaves_the_other_file_alone(files):
    (files / "pan.json").write_text("{")
    options = [*INSTANCES, *PANOPTIC, "--split", "mine", "--tasks", "instance"]
    assert build(files, *options).code == 0
    assert Manifest.load(files / "out/mine").tasks == ("instance",)


def test_a_second_split_joins_the_first_and_nothing_else_changes(files):
    assert build(files, *INSTANCES, "--split", "train").code == 0
    before = tree(files / "out")
    edit(files / "mine.json", lambda document: document["images"].pop())
    assert build(files, *INSTANCES, "--split", "test.2").code == 0
    after = tree(files / "out")
    assert after.items() >= before.items()
    assert {path.split("/")[0] for path in after} == {"train", "test.2"}
    assert Manifest.load(files / "out/test.2").samples == 1


@pytest.mark.parametrize(
    ("options", "code", "pattern"),
    [
        ([], 2, "--root: is not given"),
        ([*INSTANCES, "--root", "raw", "--split", "a"], 2, "--images: does not go with --root"),
        ([*INSTANCES, "--splits", "a"], 2, "--images: does not go with --splits"),
        ([*INSTANCES], 2, "needs --images D and --split NAME"),
        (["--instances", "mine.json", "--split", "a"], 2, "needs --images D and --split NAME"),
        (["--images", "photos", "--split", "a"], 2, "give --instances or --panoptic"),
        (
            [*PANOPTIC[:2], "--images", "photos", "--split", "a"],
            2,
            "--panoptic, --maps: one of the options is missing",
        ),
        (
            [*INSTANCES, "--maps", "maps", "--split", "a"],
            2,
            "--panoptic, --maps: one of the options is missing",
        ),
        ([*INSTANCES, "--split", "../a"], 2, r"--split: '\.\./a' is not a name"),
        ([*INSTANCES, "--split", "a", "--tasks", "semantic"], 2, "semantic needs --panoptic"),
        (["--instances", "no.json", "--images", "photos", "--split", "a"], 2, r"no\.json is not"),
        (
            ["--instances", "mine.json", "--images", "no", "--split", "a"],
            2,
            "--images: no is not a folder",
        ),
        ([*PANOPTIC[:3], "no", *PANOPTIC[4:], "--split", "a"], 2, "--maps: no is not a folder"),
        (["--instances", "bad.json", "--images", "maps", "--split", "a"], 3, r"bad\.json: at byte"),
    ],
)
def test_a_mistake_is_named(files, options, code, pattern):
    (files / "bad.json").write_text('{"images": [}')
    outcome = build(files, *options)
    assert outcome.code == code
    assert re.search(pattern, small.complaint(outcome)), outcome.err
    assert not list(files.glob("out/*/manifest.json"))


def test_other_sources_have_no_such_files(files):
    outcome = small.call(files, "build", "vistas", "--out", "out", *INSTANCES, "--split", "a")
    assert outcome.code == 2
    assert (
        "--images: only coco can be built from files of one split, not vistas"
        in small.complaint(outcome)
    )
