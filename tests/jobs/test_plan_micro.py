"""`batch.micro=auto`: the largest micro-batch that fits is found once, and recorded."""

import pytest

from jobs import config as configs
from jobs import plan_micro
from jobs.plan_micro import resolved
from jobs.plan_trial import Measured
from jobs.resume import MAY_CHANGE
from pipeline.data.split import split_of
from shards.errors import UsageError
from tests.jobs import small

AUTO = "batch.micro=auto"


@pytest.fixture
def tried(monkeypatch):
    """Return the micro-batches that are tried; those of up to 5 images fit."""
    sizes = []

    def measure(config, classes, workers, gpu, *, has_data, seconds):
        sizes.append(config.batch.micro)
        return Measured(1, 1, 1, 1, False) if config.batch.micro <= 5 else None

    monkeypatch.setattr(plan_micro, "measure", measure)
    return sizes


def config_of(*changes):
    return configs.load("tiny", ["batch.size=32", AUTO, *changes], needs_data=False)


def test_the_largest_that_fits_is_found_by_bisection(tried):
    config = resolved(config_of(), None, 5)
    assert config.batch.micro == 4  # 16 images per worker in 4 parts; 3 parts have up to 6
    assert split_of(config, 2).sizes == [4, 4, 4, 4]
    assert tried == [16, 4, 8, 6]
    assert configs.merge(configs.to_dict(config), []) == config


def test_what_was_found_is_used_again_on_the_same_machine_only(tried, tmp_path, monkeypatch):
    config = resolved(config_of(), tmp_path, 5)
    configs.save(config, tmp_path / "config.yaml")
    tried.clear()
    assert resolved(config_of("trainer.steps=9"), tmp_path, 5).batch == config.batch
    assert tried == []
    changed = resolved(config_of("model.checkpoint_activations=true"), tmp_path, 5)
    assert tried
    assert configs.differences(config, changed, MAY_CHANGE) == []
    tried.clear()
    monkeypatch.setattr(plan_micro.os, "sched_getaffinity", lambda _: range(77))
    assert f"{resolved(config_of(), tmp_path, 5).batch.measured_on}".startswith("77 cores")
    assert tried


def test_it_is_one_sentence_if_not_even_one_image_fits(monkeypatch):
    monkeypatch.setattr(plan_micro, "measure", lambda *_, **__: None)
    with pytest.raises(UsageError, match=r"auto: not even a micro-batch of one image fits"):
        resolved(config_of(), None, 5)


def test_a_gpu_that_is_not_here_cannot_be_measured(tried):
    with pytest.raises(UsageError, match=r"measured on this machine, which has no GPU"):
        resolved(config_of("scaling.gpu=true", "scaling.workers=1"), None, 5)
    assert tried == []


@pytest.mark.parametrize("change", ["model.norm=batch", "criterion.class_normalizer=local"])
def test_it_is_refused_if_it_changed_results(change):
    with pytest.raises(UsageError, match=r"batch\.micro=auto: .* changes what is learned; write"):
        config_of(change)


def test_a_preset_may_ask_for_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{base: tiny, batch: {micro: auto}}")
    assert configs.load(str(path), [], needs_data=False).batch.measured_on == configs.UNMEASURED
    given = configs.load(str(path), ["batch.micro=3"], needs_data=False)
    assert (given.batch.micro, given.batch.measured_on) == (3, None)


@pytest.mark.slow
def test_a_run_measures_once_and_resumes_with_what_it_found(photographs, tmp_path):
    def train(steps):
        steps = f"trainer.steps={steps}"
        words = small.words(photographs, AUTO, steps, "scaling.workers=1", "evaluation.images=1")
        outcome = small.finish(small.start(tmp_path, *words))
        assert outcome.code == 0, outcome
        return outcome.out

    assert f"{AUTO}: {small.GLOBAL_BATCH} images fit" in train(1)
    batch = configs.load_run(tmp_path / "runs" / small.NAME).batch
    assert batch.micro == small.GLOBAL_BATCH
    assert AUTO not in train(2)
    assert configs.load_run(tmp_path / "runs" / small.NAME).batch == batch
