"""The weights that a run starts from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.mask2former import Mask2Former
from pipeline.run.restore import initialize_backbone
from tests import distributed
from tests.pipeline.runs import MODEL, attempt, smallest


@pytest.fixture
def saved(tmp_path) -> tuple[Path, dict[str, Tensor]]:
    """Return a file of a random backbone, and its tensors."""
    torch.manual_seed(7)
    tensors = Mask2Former(MODEL, 4).backbone.body.state_dict()
    torch.save(tensors, tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth", tensors


def test_a_file_of_weights_fills_the_backbone(saved):
    path, tensors = saved
    settings = replace(MODEL, weights=str(path))
    assert (settings.weights_file, settings.weights_folder) == (str(path), "none")
    assert replace(settings, init_from="mine").weights_file == "none"
    model = Mask2Former(settings, 4)
    event = initialize_backbone(model, settings.weights_file)
    for name, tensor in model.backbone.body.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    assert (event.fresh, event.unused) == ([], [])
    assert event.describe().startswith(f"model.weights={path}, a transformers backbone: ")


@pytest.mark.slow
def test_a_run_starts_from_a_file_of_weights(saved, photographs, tmp_path):
    path, _ = saved
    plain = smallest(photographs)
    trainer = replace(plain.trainer, steps=1)
    settings = replace(plain, model=replace(MODEL, weights=str(path)), trainer=trainer)
    assert distributed.run(attempt, 1, settings, tmp_path / "run", fork=True) == ["done"]
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    (event,) = [event for event in map(json.loads, lines) if event["event"] == "init_from"]
    assert (event["key"], event["path"]) == ("model.weights", str(path))
