"""Sets and runs of a version that listed things first are read correctly or refused by name."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import config as configs
from jobs.check import check
from jobs.export.export import export
from model.mask2former import Mask2Former
from model.weights.export import to_detectron2
from model.weights.files import read
from pipeline.data.store import Store
from pipeline.run import checkpoint
from pipeline.run.folder import CHECKPOINTS
from shards.build.build import build
from shards.errors import UsageError
from shards.format.manifest import Manifest
from shards.format.taxonomy import Taxonomy
from tests.jobs import small
from tests.shards import raw_ade20k
from tests.shards.raw import sky
from tests.shards.raw import write as raw_coco
from tests.shards.raw_maps import made, samples, write

HEAD = "masked_decoder.class_head.weight"


def things_first(name: str, categories) -> Taxonomy:
    """Order a label space as `Taxonomy.of` did in earlier versions."""
    return Taxonomy(name, tuple(sorted(categories, key=lambda c: (not c.isthing, c.id))))


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """The same images in sets of this version and of one that listed things first."""
    folder = tmp_path_factory.mktemp("sets")
    raw = write(raw_ade20k, folder / "raw")
    made(raw_ade20k, raw, folder / "new", shards=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Taxonomy, "of", things_first)
        made(raw_ade20k, raw, folder / "old", shards=2)
    return {name: folder / name for name in ("old", "new")}


def test_the_same_build_replaces_a_set_of_the_old_order(sets, tmp_path):
    out = shutil.copytree(sets["old"], tmp_path / "out")
    made(raw_ade20k, sets["old"].parent / "raw", out, shards=2)
    for split in ("train", "val"):
        new, again = (Manifest.load(folder / split) for folder in (sets["new"], out))
        assert again == new
        for shard in new.shards:
            path = f"{split}/{shard.name}"
            assert (out / path).read_bytes() == (sets["new"] / path).read_bytes()


@pytest.fixture(scope="module", params=["old", "new"])
def work(request, sets, tmp_path_factory) -> tuple[Path, str]:
    """A folder with two untrained runs on one of the sets, and the set's name."""
    folder = tmp_path_factory.mktemp(f"run-{request.param}")
    small.untrained(folder, sets[request.param])
    small.untrained(folder, sets[request.param], "name=wide", "model.dim=256", "model.norm=batch")
    return folder, request.param


def test_a_set_of_either_order_has_the_same_truth_by_name(sets):
    names = {key: np.array(["", *Store(str(sets[key] / "train")).manifest.taxonomy.names])
             for key in sets}  # fmt: skip
    assert names["old"][1] == "bed"
    assert names["new"][1] == "wall"
    old, new = (samples(sets[key] / "train") for key in ("old", "new"))
    assert old.keys() == new.keys()
    for name, sample in old.items():
        assert (names["old"][sample.semantic] == names["new"][new[name].semantic]).all()
        assert [(s.id, names["old"][s.category + 1], s.area) for s in sample.segments] == [
            (s.id, names["new"][s.category + 1], s.area) for s in new[name].segments
        ]


@pytest.mark.slow
def test_evaluation_matches_the_classes_by_name(work, sets):
    folder, key = work
    scores = {}
    for data in sets:
        outcome = small.call(folder, "evaluate", small.NAME, "--data", str(sets[data] / "val"))
        assert outcome.code == 0, outcome.err
        assert ("in another order; they are matched by name" in outcome.out) == (data != key)
        path = next((folder / "runs" / small.NAME / "evaluations").glob("val-*.json"))
        document = json.loads(path.read_text())
        path.unlink()
        scores[data] = {row["name"]: row for row in document.pop("classes")}
        scores[data]["all"] = {name: document[name] for name in ("PQ", "mIoU", "AP")}
    assert scores["old"]["all"] == pytest.approx(scores["new"]["all"])
    for name, row in scores["old"].items():
        assert row == pytest.approx(scores["new"][name], nan_ok=True)


def test_sets_of_both_orders_are_not_mixed(sets):
    pairs = [f"data.train={sets['old'] / 'train'}", f"data.val={sets['new'] / 'val'}"]
    with pytest.raises(UsageError, match=r"another order, class 0 is 'bed' and 'wall'; .* version"):
        check(configs.load("tiny", pairs))
    both = f"data.train=[{sets['old'] / 'train'},{sets['new'] / 'train'}]"
    with pytest.raises(UsageError, match=r"classes differ .* another order, class 0 is 'bed'"):
        check(configs.load("tiny", [both, pairs[1]]))


def test_a_run_is_not_resumed_on_a_set_of_another_order(work, sets):
    folder, key = work
    other = next(name for name in sets if name != key)
    outcome = small.call(folder, *small.words(sets[other], "trainer.steps=2"))
    assert outcome.code == 2
    line = small.complaint(outcome)
    assert "have different classes: they are in another order, class 0 is " in line
    assert "model.init_from=small" in line


@pytest.mark.parametrize("to", ["transformers", "detectron2"])
def test_an_export_has_the_publishers_order(to, work, sets, monkeypatch, tmp_path):
    folder, _ = work
    run = folder / "runs/wide"
    (saved,) = (run / CHECKPOINTS).iterdir()
    state, trainer = checkpoint.load(saved)
    rows = dict(zip(trainer.taxonomy.names, state[f"model.{HEAD}"], strict=False))
    monkeypatch.chdir(folder)
    out = export("wide", to, tmp_path / "out")
    assert "0 wall, 1 building" in (out / "README.md").read_text()
    tensors = read(out if to == "transformers" else out / "model.pkl")
    name = "class_predictor.weight"
    name = name if to == "transformers" else "sem_seg_head.predictor.class_embed.weight"
    official = Store(str(sets["new"] / "train")).manifest.taxonomy.names
    for index, label in enumerate(official):
        assert torch.equal(tensors[name][index], rows[label])
    assert torch.equal(tensors[name][-1], state[f"model.{HEAD}"][-1])


def test_weights_of_unknown_classes_are_refused_before_training(sets, tmp_path):
    """ADE20K's classes are known, so that its weights need no names; those of `skies` are not."""
    raw = raw_coco(tmp_path / "raw", [sky("a.png")], "train")
    raw_coco(raw, [sky("b.png")], "val")
    build("coco", raw, tmp_path / "skies", jobs=1, report=lambda _: None)
    wide = ("model.dim=256", "model.norm=batch")
    path = tmp_path / "official.pkl"
    for shards in (sets["new"], sets["old"], tmp_path / "skies"):
        _, preset, *overrides = small.words(shards, *wide, f"model.init_from={path}")
        config = configs.load(preset, overrides)
        classes = Store(str(shards / "train")).manifest.taxonomy
        model = Mask2Former(config.model, len(classes))
        tensors = to_detectron2(model, config.model, config.criterion)
        path.write_bytes(pickle.dumps({"model": tensors, "__author__": "somebody"}))
        if "sky" in classes.names[-1:]:
            with pytest.raises(UsageError, match=r"official\.pkl: .*no class names, .* is cat: "):
                check(config)
        else:
            check(config)
