"""What a config reads: whether it exists, when that is reported, and whether it can be learned."""

import re
import shlex
import subprocess
import sys
import warnings

import pytest

from jobs import config as configs
from jobs import train
from jobs.check import check, load
from jobs.cluster.target import HERE
from jobs.stored import Home
from pipeline.step import cpu_helper
from shards.build.options import BuildOptions
from shards.errors import UsageError
from tests.jobs import small

HEAVY = "{'torch', 'transformers', 'ray', 'deepspeed'}"
FROZEN = "does not train without pretrained weights"
SMALL = "objects are smaller than 5x5 pixels"


@pytest.fixture(scope="module")
def sets(photographs):
    return [f"data.{name}={photographs / name}" for name in ("train", "val")]


def warned(preset: str, overrides: list[str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(configs.load(preset, overrides))
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


NOWHERE = ["data.train=/nowhere", "data.val=/nowhere"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "tiny", "trainer.stepz=4"],
        ["train", "tiny", *NOWHERE, "trainer.steps=x"],
        ["train", "tiny", *NOWHERE, "batch.size=7"],
        ["train", "tiny", *NOWHERE],
        ["train", "nothing"],
        ["evaluate", "nothing"],
        ["predict", "nothing", "photo.jpg", "--out", "pictures"],
        ["replay", "nothing", "--step", "1"],
        ["export", "nothing", "--to", "transformers"],
        ["inspect", "/nowhere"],
        ["verify", "/nowhere"],
        ["index", "/nowhere"],
        ["bench", "nothing"],
    ],
)
def test_a_wrong_name_is_reported_before_the_heavy_imports(words, tmp_path):
    program = (
        f"import sys; sys.argv = ['jobs', *{words!r}]; from jobs.__main__ import main; "
        f"assert main() == 2; assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=small.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")


def test_missing_pretrained_weights_are_named_with_the_command_that_fetches_them(sets, tmp_path):
    r50 = "resnet50-0676ba61.pth"
    url = f"https://download.pytorch.org/models/{r50}"
    swin = "microsoft/swin-tiny-patch4-window7-224"
    fetched = {
        "coco_panoptic_r50": ("not here.pth", ["--create-dirs", "-Lo", "FOLDER", url]),
        "coco_panoptic_swin_tiny": ("not here", ["download", swin, "--local-dir", "FOLDER"]),
    }
    for preset, (weights, expected) in fetched.items():
        words = [*sets, "scaling.gpu=false", f"model.weights={weights}"]
        with pytest.raises(UsageError) as error:
            check(configs.load(preset, words))
        fix = error.value.problem.fix
        folder = configs.load(preset, words).model.weights
        command, scratch = fix.removeprefix("fetch it: ").split("; to train from scratch instead, ")
        assert shlex.split(command)[1:] == [folder if x == "FOLDER" else x for x in expected]
        # What the message proposes is accepted, and the network can learn with it.
        proposed = scratch.removeprefix("write ").split()
        assert "model.weights=none" in proposed
        assert not [text for text in warned(preset, [*words, *proposed]) if FROZEN in text]
    (tmp_path / "config.json").touch()  # as after a download that was interrupted
    with pytest.raises(UsageError, match=rf"holds no weights; fetch other weights: .*{url}, "
                       rf"and write model\.weights=weights/{r50}; "):  # fmt: skip
        check(configs.load("coco_panoptic_r50", [*sets, f"model.weights={tmp_path}"]))
    with pytest.raises(UsageError, match="weights of convnext_tiny in the format of transformers"):
        check(configs.load("tiny", [*sets, "model.backbone=convnext_tiny", "model.weights=no",
                                    "model.norm=frozen_batch"]))  # fmt: skip


def test_weights_of_another_recipe_are_warned_of(sets, recwarn):
    """microsoft/resnet-50 has another recipe than the ResNet-50 of the published runs."""
    words = [*sets, "scaling.workers=1", "model.weights=weights/resnet-50"]
    load("coco_panoptic_r50", words, HERE)
    (text,) = [str(w.message) for w in recwarn if "another recipe" in str(w.message)]
    assert re.search(r"weights=.*/weights/resnet-50 is not resnet50-0676ba61\.pth, ", text)
    for weights in ("elsewhere/resnet50-0676ba61.pth", "none"):
        load("coco_panoptic_r50", [*words, f"model.weights={weights}"], HERE)
    load("coco_panoptic_r50", [*words, "model.init_from=weights/resnet-50"], HERE)
    load("coco_panoptic_swin_tiny", [*words, "model.weights=weights/swin"], HERE)
    assert len([w for w in recwarn if "another recipe" in str(w.message)]) == 1


def test_frozen_norm_without_pretrained_weights_is_warned_of(sets):
    words = [*sets, "scaling.gpu=false", "model.weights=none"]
    (text,) = warned("coco_panoptic_r50", words)
    assert FROZEN in text
    assert "model.norm=group" in text
    assert warned("coco_panoptic_swin_tiny", words) == []


def test_crops_too_small_for_most_objects_are_warned_of(sets):
    """Half of the objects in the photographs have sides of less than about 130 pixels."""
    for words in (["data.crop=32", "data.scale=[0.2,0.3]"], ["data.augment=shortest_edge",
                  "data.base=20"]):  # fmt: skip
        (text,) = warned("tiny", [*sets, *words])
        assert SMALL in text
        proposed = text.partition("; write ")[2].partition(", or use")[0].split()
        assert {word.partition("=")[0] for word in proposed} >= {"data.crop", "evaluation.short"}
        assert warned("tiny", [*sets, *words, *proposed]) == []
    assert warned("tiny", sets) == []


def test_one_set_is_not_enough_to_train(tmp_path, capsys):
    from jobs.build import build

    out = tmp_path / "shards"
    build(BuildOptions("coco", small.SAMPLE, out, ("train",), jobs=1, shards=1))
    assert "training also needs a set of other images for data.val" in capsys.readouterr().out
    build(BuildOptions("coco", small.SAMPLE, out, jobs=1, shards=1))
    assert "data.val" not in capsys.readouterr().out


def test_train_says_that_it_compiles_the_helper(sets, tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(cpu_helper, "is_compiled", lambda: False)
    monkeypatch.setattr(cpu_helper, "compile_alone", lambda: compiled.append(True))
    monkeypatch.setattr(train, "_run", lambda *_: "done")
    config = configs.load("tiny", sets)
    home = Home(tmp_path)
    with home.lease() as lease:
        train._fit(config, home, lease, "command", HERE, None, faults=None, began=0.0)
    assert compiled == [True]
    assert "compiling DeepSpeed's CPU helper, once per environment" in capsys.readouterr().out


def test_a_run_on_storage_cannot_rewind():
    sets = ["data.train=a", "data.val=b", "guard.policy=rewind", "runs=s3://bucket/runs"]
    with pytest.raises(UsageError, match=r"^guard.policy=rewind with runs=s3://bucket/runs: "):
        check(configs.load("tiny", sets))
