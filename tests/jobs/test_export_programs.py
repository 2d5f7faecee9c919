"""`export --to onnx` and `--to torch-export`: the programs run beside the network."""

import contextlib
import json
import re
import shutil
from collections import Counter
from functools import partial

import onnx
import onnxruntime
import pytest
import torch

from jobs import config as configs
from jobs.export import parity, programs
from jobs.export.programs import FORBIDDEN
from model.mask2former import Mask2Former, ModelSettings
from model.network_settings import MaskedDecoderSettings, PixelDecoderSettings, SegmentSettings
from model.portable import LOGITS, OUTPUTS, Segmenter, trace
from tests.jobs import small
from tests.parity.samples import randomize
from tests.shards.raw import SAMPLE

PHOTO = next((SAMPLE / "val2017").glob("*.jpg"))
CLASSES = 12
DECODERS = {
    "dim": 32,
    "queries": 20,
    "pixel_decoder": PixelDecoderSettings(layers=1, heads=2, feedforward=32),
    "masked_decoder": MaskedDecoderSettings(layers=3, heads=2, feedforward=32),
}
NETWORKS = {  # a ResNet of the published depth, and a Swin with both kinds of windows
    "resnet50": {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 64]},
    "swin": {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2]},
}


class AllTasks(Segmenter):
    """A segmenter of all tasks, so that a network is traced once."""

    def _segment(self, class_logits, mask_logits):
        outputs = []
        for self.task in OUTPUTS:
            outputs.extend(super()._segment(class_logits, mask_logits))
        return tuple(outputs)


def run_card(card, folder):
    """Run the code of a card beside photo.jpg, and return the names that it defines."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    shutil.copy(PHOTO, folder / "photo.jpg")
    names = {}
    with contextlib.chdir(folder):
        exec(code, names)
    return names


def _run(session, outputs, pixels):
    return session.run(outputs, {"pixels": pixels})


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    """A folder with an untrained run."""
    folder = tmp_path_factory.mktemp("programs")
    small.untrained(folder, photographs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NETWORKS)
def test_onnx_runtime_computes_the_result_of_each_task(backbone):
    settings = ModelSettings(backbone, NETWORKS[backbone], **DECODERS)
    torch.manual_seed(0)
    model = Mask2Former(settings, CLASSES)
    randomize(model)
    things = [number % 2 == 0 for number in range(CLASSES)]
    segmenter = AllTasks(model, "panoptic", things, SegmentSettings(0.0, 0.0, detections=30))
    names = [f"{task}_{name}" for task, outputs in OUTPUTS.items() for name in outputs]
    proto = programs.to_onnx(trace(segmenter), [*names, *LOGITS])
    types = Counter(node.op_type for node in proto.graph.node)
    assert not types.keys() & FORBIDDEN
    assert [(x.domain, x.version) for x in proto.opset_import] == [("", programs.OPSET)]
    assert len(proto.functions) == 0
    assert types["Conv"] > 5
    assert types["Gather"] > 4
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for segmenter.task in OUTPUTS:
        wanted = [*(f"{segmenter.task}_{name}" for name in OUTPUTS[segmenter.task]), *LOGITS]
        run = partial(_run, session, wanted)
        report = parity.compare(run, segmenter, [])
        assert report["logits_difference"] <= report["limits"]["logits_difference"]
        assert [row["shape"][0] for row in report["comparisons"]] == [2, 1, 2]
        if segmenter.task == "instance":
            assert all(row["segments"] >= 2 for row in report["comparisons"])


@pytest.mark.slow
@pytest.mark.parametrize(("to", "task"), [("onnx", "panoptic"), ("torch-export", "instance")])
def test_a_program_is_compared_before_it_is_written(work, to, task):
    command = ["export", small.NAME, "--to", to, "--task", task]
    outcome = small.call(work, *command)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    out = work / "runs" / small.NAME / f"exports/{to}-{task}-step-000000000"
    file = out / f"{task}.{'onnx' if to == 'onnx' else 'pt2'}"
    report = json.loads((out / "parity.json").read_text())
    assert report["images"]["kind"] == "photographs"
    card = (out / "README.md").read_text()
    assert parity.sentence(report) in card
    names = run_card(card, out)
    assert names["class_logits"].shape == (1, 12, 134)
    assert names["mask_logits"].shape[:2] == (1, 12)
    if to == "onnx":
        facts = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        assert json.loads(facts["classes"])[0] == "person"
        assert str(small.ROOT).encode() not in file.read_bytes()
    else:
        program = torch.export.load(file).module()
        masks, *_ = program(torch.zeros(1, 3, 50, 130, dtype=torch.uint8))
        assert masks.shape == (1, 20, 50, 130)


def test_a_program_that_differs_or_cannot_be_made_is_not_written(work, monkeypatch):
    command = ["export", small.NAME, "--to", "onnx", "--out", "other"]

    def untraceable(segmenter):
        raise RuntimeError("an operator\nwith details")

    monkeypatch.setattr(programs, "trace", untraceable)
    outcome = small.call(work, *command)
    assert outcome.code == 2
    complaint = small.complaint(outcome)
    assert "torch cannot export model.backbone=resnet: an operator; use --to" in complaint
    config = configs.load_run(work / "runs" / small.NAME)
    model = Mask2Former(config.model, 133).eval()
    segmenter = Segmenter(model, "semantic", [True] * 133, config.evaluation.segment)

    def wrong(pixels):
        *results, class_logits, mask_logits = segmenter(torch.from_numpy(pixels))
        return [*results, class_logits + 0.1, mask_logits]

    with torch.no_grad(), pytest.raises(parity.Failed, match=r"logits within 1\.0e-01 .*nothing"):
        parity.compare(wrong, segmenter, [])
    assert not (work / "other").exists()


@torch.no_grad()
def test_images_without_an_instance_are_compared(work, monkeypatch):
    monkeypatch.setattr(parity, "SHAPES", ((1, 40, 30),))
    config = configs.load_run(work / "runs" / small.NAME)
    model = Mask2Former(config.model, 133).eval()
    segmenter = Segmenter(model, "instance", [False] * 133, config.evaluation.segment)
    report = parity.compare(lambda pixels: segmenter(torch.from_numpy(pixels)), segmenter, [])
    assert report["equal_pixels"] == 1
    assert [row["segments"] for row in report["comparisons"]] == [0]


def test_undecided_images_are_replaced_and_the_report_counts_them(work, monkeypatch):
    config = configs.load_run(work / "runs" / small.NAME)
    model = Mask2Former(config.model, 133).eval()
    segmenter = Segmenter(model, "semantic", [True] * 133, config.evaluation.segment)

    def run(pixels):
        return segmenter(torch.from_numpy(pixels))

    monkeypatch.setattr(parity, "SHAPES", ((2, 32, 64), (1, 40, 30), (2, 64, 32)))

    def compare(*smallest):
        decisions = iter(smallest)
        monkeypatch.setattr(parity, "smallest_decisions", lambda *_: torch.tensor(next(decisions)))
        with torch.no_grad():
            return parity.compare(run, segmenter, [])

    report = compare(1e-5, 1.0, 0.0, 2.0, 3.0, 3.0, 3.0)
    first, second, _ = report["comparisons"]
    assert (first["drawn"], first["undecided"], first["smallest_attention_logit"]) == (4, 2, 1)
    assert (second["drawn"], second["undecided"]) == (1, 0)
    images = report["images"]
    assert (images["drawn"], images["undecided"], images["compared"]) == (7, 2, 5)
    assert "7 were drawn, and 2 of them were undecided, because an" in parity.sentence(report)
    logits = first["mask_logits"]
    assert logits["limit"] == pytest.approx(1e-4 * max(1, logits["largest"]))
    monkeypatch.setattr(parity, "TRIES", 3)
    report = compare(*[0.0, 1e-6, 1e-5] * 3)
    assert report["images"]["undecided"] == report["images"]["drawn"] == 9
    assert report["comparisons"][1]["smallest_attention_logit"] == pytest.approx(1e-5)
