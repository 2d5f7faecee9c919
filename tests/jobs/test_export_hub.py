"""`export --to hub`: the pipeline of transformers beside the project's own segmentations."""

import contextlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import dynamic_module_utils, pipeline

from jobs import config as configs
from pipeline.run.restore import load_model
from pipeline.score.inference import infer
from shards.format.images import decode_image
from tests.jobs import small
from tests.shards.raw import SAMPLE

PHOTOS = sorted((SAMPLE / "val2017").glob("*.jpg"))[:2]


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    """A folder with an untrained run that transformers can load, and its export."""
    folder = tmp_path_factory.mktemp("hub")
    small.untrained(
        folder, photographs, "model.dim=256", "model.norm=batch", "evaluation.short=96",
        "evaluation.long=128",
    )  # fmt: skip
    outcome = small.call(folder, "export", small.NAME, "--to", "hub", "--out", "hub")
    assert (outcome.code, outcome.err) == (0, "")
    return folder


@pytest.fixture
def segment(work, tmp_path, monkeypatch):
    """The pipeline that the model card makes, which has segmented photo.jpg."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(work / "hub", tmp_path / "hub")
    shutil.copy(PHOTOS[0], tmp_path / "hub/photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (work / "hub/README.md").read_text(), re.DOTALL)
    names = {}
    with contextlib.chdir(tmp_path / "hub"):
        exec(code, names)  # the names that the code defines
    assert names["found"]
    return names["segment"]


@pytest.mark.slow
def test_the_pipeline_gives_our_own_results_of_photographs(work, segment):
    config = configs.load_run(work / "runs" / small.NAME)
    device = torch.device("cpu")
    model, taxonomy, _ = load_model(
        config.model, config.task, work / "runs" / small.NAME, None, device
    )
    segments = 0
    for path in PHOTOS:
        image = decode_image(path.read_bytes(), path.name)
        own = infer(model, image, config.evaluation, taxonomy.things, device)
        found = segment(str(path))
        assert [row["label"] for row in found] == [
            taxonomy.names[row["category"]] for row in own.segments
        ]
        assert [row["score"] for row in found] == pytest.approx(
            [row["score"] for row in own.segments], abs=1e-5
        )
        ids = np.zeros_like(own.panoptic)
        for number, row in enumerate(found, start=1):
            ids[np.asarray(row["mask"]) > 0] = number
        assert (ids == own.panoptic).mean() >= 0.999
        segments += len(found)
        classes = np.full(own.semantic.shape, -1)
        for row in segment(str(path), subtask="semantic"):
            classes[np.asarray(row["mask"]) > 0] = taxonomy.names.index(row["label"])
        assert (classes == own.semantic).mean() >= 0.999
        things = segment(str(path), subtask="instance")
        assert sorted(row["score"] for row in things) == pytest.approx(
            sorted(own.scores.tolist()), abs=1e-5
        )
    assert segments >= len(PHOTOS)


def test_thresholds_can_be_passed_and_a_mistake_is_named(segment):
    assert segment(str(PHOTOS[0]), threshold=1.0) == []
    with pytest.raises(ValueError, match=r"mask_threshold=0\.4: masks end at"):
        segment(str(PHOTOS[0]), mask_threshold=0.4)
    with pytest.raises(ValueError, match="subtask='depth': use panoptic"):
        segment(str(PHOTOS[0]), subtask="depth")


def test_the_folder_says_what_it_holds(work):
    card = (work / "hub/README.md").read_text()
    assert re.search(r"fingerprint `[0-9a-f]{16,}`", card)
    assert "| 0 person | thing | `#f25555` |" in card
    assert "exceeds 0" in card
    config = json.loads((work / "hub/config.json").read_text())
    assert config["mask2former"]["colors"][0] == [242, 85, 85]
    assert (work / "hub/model.safetensors").is_file()
    assert str(small.ROOT) not in "".join(
        path.read_text() for path in (work / "hub").iterdir() if path.suffix != ".safetensors"
    )


def test_code_of_the_folder_runs_only_if_it_is_trusted(work):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        pipeline("image-segmentation", model=str(work / "hub"))
