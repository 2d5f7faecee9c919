"""`export --to onnx` and `--to torch-export`: the programs run beside the network."""

import json
from collections import Counter

import onnx
import pytest

from jobs.export.programs import FORBIDDEN
from tests.jobs import small


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    """A folder with an untrained run."""
    folder = tmp_path_factory.mktemp("programs")
    small.untrained(folder, photographs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_onnx_runtime_computes_the_result_of_each_task(work, task):
    outcome = small.call(work, "export", small.NAME, "--to", "onnx", "--task", task, "--out", task)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    report = json.loads((work / task / "parity.json").read_text())
    assert report["images"] == "photographs"
    assert report["logits_difference"] < 1e-4
    assert report["mask_iou"] > 0.999
    assert report["equal_pixels"] > 0.999
    model = onnx.load(work / task / f"{task}.onnx")
    onnx.checker.check_model(model, full_check=True)
    types = Counter(node.op_type for node in model.graph.node)
    assert not types.keys() & FORBIDDEN
    assert {"Gather", "Conv", "MatMul"} <= types.keys()
    assert str(work) not in str(model.graph.node)
