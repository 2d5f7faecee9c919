"""`plan` and `train --dry-run`: what a run takes, without the run."""

import json
import math
import re

import pytest
import torch

from jobs import config as configs
from jobs import plan, plan_trial
from jobs.plan_network import Sizes, activation_bytes, network_of, step_parts
from jobs.plan_rates import rate_of
from jobs.preset import names
from model.mask2former import Mask2Former
from pipeline.settings import ZeroSettings
from tests.jobs import small


@pytest.mark.filterwarnings("ignore:model.norm=sync_batch needs a GPU")
@pytest.mark.parametrize("preset", names())
def test_a_dry_run_of_every_preset_prints_its_plan_and_writes_nothing(
    preset, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    found = plan.dry_run(preset, [])
    text = capsys.readouterr().out
    assert text.startswith(f"plan of {preset} on this machine")
    assert "the order is not drawn" in text
    assert found["network"]["parameters"] > 1e6
    assert not found["learning_rate"]["is_unusual"]
    json.dumps(found)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_with_data_draws_the_order(photographs, tmp_path):
    outcome = small.call(tmp_path, *small.words(photographs), "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    text = " ".join(outcome.out.split())
    assert "; the order starts with 000000" in text
    assert "2 workers without a GPU; each takes 2 micro-batches of 2 images" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task=instances", "task=instances"),
        ("batch.size=1", "1 images are too few for scaling.workers=2"),
        ("model.freeze=[backbon]", "the network has no part 'backbon'; did you mean backbone?"),
    ],
)
def test_a_dry_run_of_a_wrong_config_is_exit_2(change, message, photographs, tmp_path):
    outcome = small.call(tmp_path, *small.words(photographs, change), "--dry-run")
    assert outcome.code == 2
    assert message in small.complaint(outcome)


def test_sizes_are_those_of_the_tensors():
    changes = ["model.freeze=[backbone.stem]", *small.SETTINGS]
    config = configs.load("tiny", changes, needs_data=False)
    network = Mask2Former(config.model, 5)
    sizes = Sizes.of(network_of(config, 5))
    assert sizes == Sizes.of(network)
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    weights = sum(p.nbytes for p in network.parameters())
    stem = sum(p.nbytes for p in network.backbone.body.embedder.parameters())
    assert weights - trained == stem == 4 * sizes.frozen["backbone"]
    assert sizes.checkpoint_bytes(ema=True) == weights + 3 * trained + sizes.buffer_bytes
    kept = [sizes.state_bytes(ZeroSettings(stage), 4, ema=False) for stage in (0, 2, 3)]
    assert kept[0] == weights + 3 * trained + sizes.buffer_bytes
    assert sorted(kept, reverse=True) == kept


def test_activations_are_those_that_autograd_keeps():
    config = configs.load("tiny", [*small.SETTINGS], needs_data=False)
    estimated = activation_bytes(config, 5, bfloat16=False)
    network = Mask2Former(config.model, 5).train()
    constants = {
        x.untyped_storage().data_ptr() for x in (*network.parameters(), *network.buffers())
    }
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.zeros(1, 3, 64, 64))
    measured = sum(s.nbytes() for address, s in kept.items() if address not in constants)
    assert estimated == pytest.approx(measured, rel=0.02)


def test_a_smaller_batch_is_given_the_rate_of_the_square_root():
    config = configs.load("coco_panoptic_r50", ["batch.size=4"], needs_data=False)
    rate = rate_of("coco_panoptic_r50", config)
    assert (rate.proposed, rate.linear) == (1e-4 / math.sqrt(4), 1e-4 / 4)
    assert rate.is_unusual
    assert "write optimizer.lr=5e-05" in rate.advice
    config = configs.load(
        "coco_panoptic_r50", ["batch.size=4", "optimizer.lr=5e-5"], needs_data=False
    )
    assert not rate_of("coco_panoptic_r50", config).is_unusual


def test_a_file_is_compared_with_the_preset_that_it_extends(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{base: tiny, batch: {size: 2}}")
    rate = rate_of(str(path), configs.load(str(path), [], needs_data=False))
    assert (rate.known_lr, rate.known_batch, rate.is_unusual) == (1e-3, 8, True)


@pytest.mark.slow
def test_a_plan_measures_a_step_with_the_data_or_without(photographs, tmp_path):
    """What the step takes is measured by the workers themselves; no duration is asserted."""
    changes = [*small.words(photographs)[1:], "data.crop=256", "scaling.workers=1"]
    outcome = small.call(tmp_path, "plan", *changes, "--json")
    assert outcome.code == 0, outcome
    found = json.loads(outcome.out)
    assert found["memory"]["is_measured"]
    estimate = found["memory"]["estimated_bytes"]
    assert estimate / 2 < found["memory"]["bytes"] < 2 * estimate
    speed = found["speed"]
    assert not speed["is_synthetic"]
    assert sum(speed["shares"].values()) == pytest.approx(1)
    assert speed["eta_s"] == pytest.approx(small.STEPS * speed["step_s"])
    assert "images/s" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_the_gpus_of_the_preset_states_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    outcome = small.call(tmp_path, "plan", "coco_panoptic_r50", "scaling.workers=8")
    assert (outcome.code, outcome.err) == (0, "")
    text = " ".join(outcome.out.split())
    assert "per worker (an estimate, not measured)" in text
    assert "not measured on this machine: the config wants 8 GPUs, and this machine has 0" in text
    assert re.search(r"model.checkpoint_activations=true saves about \d[\d.]* GiB", text)
    assert "images/s" not in text


def test_a_step_that_takes_too_much_memory_is_ended(monkeypatch):
    config = configs.load("tiny", ["scaling.workers=1"], needs_data=False)
    monkeypatch.setattr(plan_trial, "SHARE", 1e-4)
    assert plan_trial.measure(config, 5, 1, gpu=False, has_data=False) is None


def test_the_estimate_is_that_of_the_card_it_was_calibrated_with():
    """16 images of 1024x1024 pixels with R50 took 33 GiB of an H200 (docs/gpu.md)."""
    changes = ["batch.micro=16", "scaling.workers=1"]
    config = configs.load("coco_panoptic_r50", changes, needs_data=False)
    sizes = Sizes.of(network_of(config, 133))
    assert step_parts(config, sizes, 133, 1, gpu=True).total == pytest.approx(33 << 30, rel=0.05)
