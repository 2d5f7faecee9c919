"""`evaluate WEIGHTS` scores a folder of transformers and an official file without a run."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.evaluate_weights import _loaded, _settings
from model.criterion import CriterionSettings
from model.mask2former import Mask2Former
from model.weights.export import save_transformers, to_detectron2
from model.weights.transformers_settings import read_settings
from pipeline.data.store import Store
from pipeline.score.record import Record
from tests.jobs import small
from tests.model.test_weights import settings_of

EVALUATION = {"short": 64, "long": 96, "segment": {"object_threshold": 0, "overlap_threshold": 0}}


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory) -> Path:
    """Return a folder with a random network as `theirs/` and `official.pkl`, and its preset."""
    work = tmp_path_factory.mktemp("weights")
    settings, names = settings_of("swin"), Store(photographs / "val").manifest.taxonomy.names
    model = Mask2Former(settings, len(names))
    save_transformers(work / "theirs", model, settings, CriterionSettings(), list(names))
    tensors = to_detectron2(model, settings, CriterionSettings())
    (work / "official.pkl").write_bytes(pickle.dumps({"model": tensors, "__author__": "somebody"}))
    chosen = {"model": asdict(settings), "evaluation": EVALUATION}
    (work / "small.yaml").write_text(yaml.safe_dump(chosen))
    return work


def call(work: Path, data: Path, weights: str, *options: str) -> small.Outcome:
    return small.call(
        work, "evaluate", weights, "--data", str(data), "--out", f"of-{weights}", *options
    )


@pytest.mark.slow
def test_a_folder_and_an_official_file_of_a_network_have_the_same_scores(work, photographs):
    data, scores = photographs / "val", {}
    for weights in ("theirs", "official.pkl"):
        options = ("--preset", "small.yaml", "--images", "1", "--json", "--report", "out.html")
        outcome = call(work, data, weights, *options)
        assert outcome.code == 0, outcome.err
        assert "The 1 worst images" in (work / "out.html").read_text()
        scores[weights] = json.loads(outcome.out)
        written = json.loads((work / f"of-{weights}/scores.json").read_text())
        assert written.items() >= scores[weights].items()
        assert len(Record.load(work / f"of-{weights}/record.npz").images) == 1
        assert (work / f"of-{weights}/sheet.png").is_file()
    assert scores["theirs"] == scores["official.pkl"]
    assert scores["theirs"]["PQ"] is not None
    records = [f"of-{weights}/record.npz" for weights in scores]
    outcome = small.call(work, "evaluate", *records, "--json")
    assert {row["difference"] for row in json.loads(outcome.out)["scores"]} == {0}


def test_the_config_of_a_folder_gives_the_network(work, photographs, capsys):
    network, evaluation = _settings(work / "theirs", None, photographs / "val")
    _loaded(work / "theirs", network, Store(photographs / "val").manifest.taxonomy)
    assert "classes by name" in capsys.readouterr().out
    assert (evaluation.short, evaluation.long) == (800, 1333)
    found, wanted = read_settings(work / "theirs"), settings_of("swin")
    changed = wanted.backbone_config
    assert {key: list(found.backbone_config[key]) for key in ("depths", "num_heads")} == {
        key: changed[key] for key in ("depths", "num_heads")
    }
    for key in ("queries", "dim", "pixel_decoder", "masked_decoder"):
        assert getattr(found, key) == getattr(wanted, key)


def test_what_does_not_fit_is_one_line(work, photographs):
    data = photographs / "val"
    config = json.loads((work / "theirs/config.json").read_text())
    (work / "odd").mkdir()
    (work / "odd/config.json").write_text(json.dumps(config | {"feature_size": 8}))
    (work / "half.pkl").write_bytes(pickle.dumps({"model": {"res2.a": np.zeros(3, np.float32)}}))
    for weights, options, message in (
        ("official.pkl", (), "do not say which network they are of; add --preset"),
        ("half.pkl", ("--preset", "small.yaml"), "half.pkl: "),
        ("official.pkl", ("--preset", "tiny"), "does not fit"),
        ("odd", (), "config.json: feature_size=8, but this network has 256"),
        ("theirs", ("--on", "1.2.3.4:6379"), "it needs a run, not weights"),
        ("theirs", ("--checkpoint", "last"), "it needs a run, not weights"),
    ):
        outcome = call(work, data, weights, *options)
        assert outcome.code == 2, outcome.err
        assert message in small.complaint(outcome)
    outcome = small.call(work, "evaluate", "theirs", "--out", "x")
    assert "weights without a run need --data" in small.complaint(outcome)
    outcome = small.call(work, "evaluate", "nothing", "--out", "x")
    assert "no run 'nothing'" in small.complaint(outcome) or "--out" in small.complaint(outcome)
