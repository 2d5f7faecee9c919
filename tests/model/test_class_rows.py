"""Class names in files of weights, and the rows of the class head that are taken from a file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.criterion import CriterionSettings
from model.mask2former import Mask2Former
from model.weights.classes import (
    CLASS_HEAD,
    CLASS_NAMES,
    ClassRows,
    encode_names,
    permute_classes,
)
from model.weights.export import save_transformers
from model.weights.load import fit, load
from tests.model.test_weights import assert_same, build, official, pickled, settings_of

SETTINGS = settings_of("resnet")
NAMES = ["a", "b, c", "é", "LABEL_7", "e"]


def seen_names(path: Path, classes: int = 5) -> list[str] | None:
    """Return the class names that `fit` finds in a file."""
    seen = []

    def match(names, count):
        seen.append(names)
        return ClassRows([None] * classes, "seen")

    fit(build(SETTINGS, seed=1, classes=classes), path, match)
    return seen[0]


def exported(tmp_path: Path, **config) -> Path:
    """Return a folder of transformers whose config.json has other values."""
    model = build(SETTINGS, seed=0)
    save_transformers(tmp_path, model, SETTINGS, CriterionSettings(), NAMES)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return tmp_path


def test_the_names_of_a_folder_of_transformers_are_those_of_its_config(tmp_path):
    folder = exported(tmp_path)
    assert seen_names(folder) == NAMES
    assert seen_names(folder / "model.safetensors") == NAMES
    unsorted = {"2": "x", "10": "y"} | {str(n): f"n{n}" for n in range(10) if n != 2}
    exported(folder, id2label=unsorted)
    assert seen_names(folder) == ["n0", "n1", "x", *(f"n{n}" for n in range(3, 10)), "y"]


@pytest.mark.parametrize("labels", [{str(n): f"LABEL_{n}" for n in range(5)}, None])
def test_generated_labels_are_not_names(labels, tmp_path):
    folder = exported(tmp_path, id2label=labels or {})
    if labels is None:
        (folder / "config.json").unlink()
    assert seen_names(folder) is None


@pytest.mark.parametrize(
    "text",
    ['{"id2label": [1]}', '{"id2label": {"0": 1}}', '{"id2label": {"1": "a"}}', "[]", "{", "\xff",
     '{"id2label": {"x": "a"}}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_config_is_named(text, tmp_path):
    folder = exported(tmp_path)
    (folder / "config.json").write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=r"model\.init_from=.*: config\.json has no readable"):
        seen_names(folder)


def test_the_names_of_a_pickle_are_an_array_beside_its_tensors(tmp_path):
    tensors = official(build(SETTINGS, seed=0), SETTINGS)
    assert seen_names(pickled(tmp_path / "nameless.pkl", tensors)) is None
    path = pickled(tmp_path / "named.pkl", tensors | {CLASS_NAMES: encode_names(NAMES)})
    assert seen_names(path) == NAMES
    assert load(build(SETTINGS, seed=1), path).unused == ["criterion.empty_weight [6]"]
    for damaged in (np.zeros(3, np.uint8), np.frombuffer(b'{"a": 1}', np.uint8), np.zeros(())):
        path = pickled(tmp_path / "damaged.pkl", tensors | {CLASS_NAMES: damaged})
        with pytest.raises(ValueError, match="class_names has no readable class names"):
            seen_names(path)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_class_gets_its_row_or_keeps_its_initial_values(device, tmp_path):
    model = build(SETTINGS, seed=0)
    path = pickled(tmp_path / "model.pkl", official(model, SETTINGS))
    with torch.device(device):
        twin = Mask2Former(SETTINGS, 4) if device == "meta" else build(SETTINGS, 1, classes=4)
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    rows = [3, None, 0, 4]
    loaded = fit(twin, path, lambda names, count: ClassRows(rows, f"{names}, {count}"))
    assert loaded.classes == "None, 5"
    assert loaded.classes in str(loaded)
    assert loaded.fresh == [
        "masked_decoder.class_head.weight [5, 256] (1 classes are not in the file)",
        "masked_decoder.class_head.bias [5] (1 classes are not in the file)",
    ]
    for name in CLASS_HEAD:
        head, source = loaded.state[name], model.state_dict()[name]
        assert torch.equal(head[[0, 2, 3, 4]], source[[3, 0, 4, 5]])
        if device == "cpu":
            assert torch.equal(head[1], before[name][1])
            assert torch.equal(twin.state_dict()[name], before[name])  # `fit` changes nothing


def test_permuted_classes_have_permuted_rows():
    model, twin = build(SETTINGS, 0), build(SETTINGS, 0)
    permute_classes(twin, [2, 0, 1, 4, 3])
    for name in CLASS_HEAD:
        assert torch.equal(twin.state_dict()[name], model.state_dict()[name][[2, 0, 1, 4, 3, 5]])
    assert_same(model, twin, but=CLASS_HEAD)
