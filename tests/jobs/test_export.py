"""`export`, loaded by other libraries as the card says, and by `model.init_from`."""

import contextlib
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import Mask2FormerForUniversalSegmentation

from jobs import config as configs
from jobs.check import check
from model.mask2former import Mask2Former
from model.weights.load import load
from pipeline.run.eventlog import EVENTS
from pipeline.run.restore import initial_weights, load_model
from shards.errors import UsageError
from shards.files import write_json
from shards.jsonl import rows
from tests.jobs import small
from tests.shards.raw import SAMPLE

WEIGHTS = ("transformers", "detectron2")
EXPORTABLE = ("model.dim=256", "model.norm=batch")
PHOTO = next((SAMPLE / "val2017").glob("*.jpg"))


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    """A folder with an untrained, scored run that other libraries can load, and both exports."""
    folder = tmp_path_factory.mktemp("export")
    run = small.untrained(folder, photographs, *EXPORTABLE)
    write_json(
        run / "evaluations/step-000000000.json", {"step": 0, "images": 5, "PQ": 12.345, "AP": None}
    )
    for words in (["transformers", "--out", "out/transformers"], ["detectron2"]):
        outcome = small.call(folder, "export", small.NAME, "--to", *words)
        assert outcome.code == 0, outcome.err
        assert outcome.err == ""
    return folder


@pytest.fixture(scope="module")
def state(work):
    run = work / "runs" / small.NAME
    config = configs.load_run(run)
    model, _, _ = load_model(config.model, config.task, run, None, torch.device("cpu"))
    return model.state_dict()


def exported(work, to):
    if to == "transformers":
        return work / "out/transformers"
    return work / "runs" / small.NAME / "exports/detectron2-step-000000000"


@pytest.mark.parametrize("to", WEIGHTS)
def test_the_card_says_what_it_is(work, to):
    _, head, text = (exported(work, to) / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == to
    assert "133 classes" in text
    assert "On 5 images of the val set, in percent:\n" in text
    assert "| PQ |\n|---|\n| 12.35 |\n\n## Data" in text
    assert "creativecommons.org/licenses/by/2.0" in text
    assert "0 person, 1 bicycle" in text
    left_over = [p for p in exported(work, to).parent.iterdir() if p.name.startswith(".")]
    assert left_over == []


def test_the_code_of_the_card_runs(work, tmp_path):
    folder = exported(work, "transformers")
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {}
    with contextlib.chdir(tmp_path):
        exec(code, names)  # the names that the code defines
    assert names["model"].config.id2label[0] == "person"
    assert names["outputs"].class_queries_logits.shape == (1, 12, 134)
    assert names["result"]["segmentation"].shape == names["image"].size[::-1]
    pixels = names["processor"](images=np.zeros((50, 80, 3), np.uint8))["pixel_values"][0]
    expected = (0 - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]
    assert np.asarray(pixels)[:, 0, 0] == pytest.approx(expected, abs=1e-5)
    assert [side % 32 for side in np.asarray(pixels).shape[1:]] == [0, 0]


@pytest.mark.parametrize("to", [*WEIGHTS, "run"])
def test_a_run_starts_from_what_was_written(work, state, photographs, to):
    path = {
        "transformers": "out/transformers",
        "detectron2": f"{exported(work, 'detectron2')}/model.pkl",
        "run": small.NAME,
    }[to]
    _, preset, *overrides = small.words(photographs, *EXPORTABLE, f"model.init_from={path}")
    with contextlib.chdir(work):
        config = configs.load(preset, [*overrides, "name=second"])
        check(config)
    model = Mask2Former(config.model, 133)
    loaded = load(model, initial_weights(config.model.init_from, "panoptic"))
    assert loaded.fresh == []
    assert all(torch.equal(state[n], tensor) for n, tensor in model.state_dict().items())


def test_transformers_finds_every_tensor_and_the_pickle_is_detectron2s(work):
    _, info = Mask2FormerForUniversalSegmentation.from_pretrained(
        exported(work, "transformers"), output_loading_info=True
    )
    assert not any(info.values())
    document = pickle.loads((exported(work, "detectron2") / "model.pkl").read_bytes())
    assert document.keys() == {"model", "__author__"}
    assert all(isinstance(array, np.ndarray) for array in document["model"].values())


def test_mistakes_are_exit_2(work, photographs, tmp_path):
    (work / "dangling").symlink_to("nowhere")
    (work / "file").write_text("mine")
    again = ["export", small.NAME, "--to", "transformers", "--out", "out/transformers"]
    for command, pattern in (
        (again, "out/transformers: exists already; name another folder with --out"),
        (
            ["export", small.NAME, "--to", "keras"],
            "--to: unknown format 'keras'; use transformers, detectron2, hub, onnx or torch-export",
        ),
        (
            ["export", small.NAME, "--to", "onnx", "--task", "depth"],
            "--task: unknown task 'depth'; use panoptic, instance or semantic",
        ),
        (
            ["export", small.NAME, "--to", "detectron2", "--task", "semantic"],
            "--task: --to detectron2 writes weights, which serve every task; leave it out",
        ),
        (["export", "nobody", "--to", "transformers"], "no run 'nobody'"),
        ([*again[:-1], "dangling"], "dangling: exists already"),
        ([*again[:-1], "file/out"], "--out"),
        ([*again[:-1], f"runs/{small.NAME}/checkpoints/step-000000001-a01"], "which is read"),
        ([*again[:-1], f"runs/{small.NAME}"], "which is read"),
    ):
        outcome = small.call(work, *command)
        assert outcome.code == 2
        assert pattern in small.complaint(outcome)
    small.untrained(tmp_path, photographs)
    outcome = small.call(tmp_path, "export", small.NAME, "--to", "transformers")
    assert outcome.code == 2
    assert "model.norm=group" in small.complaint(outcome)
    assert list((tmp_path / "runs" / small.NAME / "exports").iterdir()) == []


def test_weights_that_do_not_fit_are_refused_before_training_but_not_on_resume(work, photographs):
    def config(*changes):
        _, preset, *overrides = small.words(photographs, *EXPORTABLE, *changes)
        return configs.load(preset, overrides)

    path = exported(work, "detectron2") / "model.pkl"
    with pytest.raises(
        UsageError, match=r"another shape: .*query_feat.* \[12, 256\] instead of \[9,"
    ):
        check(config(f"model.init_from={path}", "model.queries=9"))
    missing = config("model.init_from=gone.pkl")
    with pytest.raises(UsageError, match=r"model\.init_from=.*gone\.pkl: .*No such file"):
        check(missing)
    check(missing, fresh=False)
    without_weights = config(f"model.init_from={path}", "model.weights=nowhere")
    check(without_weights)  # init_from is used instead of weights


@pytest.mark.slow
def test_training_says_what_it_starts_from(work, state, photographs):
    path = exported(work, "detectron2") / "model.pkl"
    changes = ("name=second", "trainer.steps=2", f"model.init_from={path}", "optimizer.lr=1e-9")
    words = small.words(photographs, *EXPORTABLE, *changes)
    outcome = small.finish(small.start(work, *words))
    assert outcome.code == 0, outcome.err
    assert f"model.init_from={path}, a detectron2 checkpoint: {len(state)} tensors" in outcome.out
    second = work / "runs/second"
    (event,) = [row for row in rows(second / EVENTS) if row["event"] == "init_from"]
    assert event["fresh"] == []
    config = configs.load_run(second)
    device = torch.device("cpu")
    model, _, step = load_model(config.model, config.task, second, "last", device)
    assert step == 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), state[name], rtol=0, atol=1e-6)
