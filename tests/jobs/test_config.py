"""Settings: presets that hold, the order of what overrides what, and what a mistake looks like."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import ResNetBackbone, ResNetConfig

from jobs import config as configs
from jobs.check import check
from shards.build.build import build
from shards.errors import UsageError
from tests.jobs import small
from tests.shards.raw import sky, write

PRESETS = sorted(path.stem for path in configs.PRESETS.glob("*.yaml"))
# What a preset for large machines needs on any: no GPU, and no weights that are not there.
ANYWHERE = ("scaling.gpu=false", "model.weights=none")


@pytest.fixture(scope="module")
def sets(photographs):
    return [f"data.{name}={photographs / name}" for name in ("train", "val")]


def refused(pattern: str, overrides: list[str], preset: str = "tiny") -> None:
    """Loading and checking raises UsageError of one line that matches."""
    with pytest.raises(UsageError) as error:
        check(configs.load(preset, overrides))
    assert "\n" not in str(error.value)
    assert re.search(pattern, str(error.value)), error.value


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_checks(preset, sets):
    config = configs.load(preset, [*sets, *ANYWHERE])
    (train,), val = check(config)
    assert (len(train), len(val)) == (10, 5)
    assert config.name == preset


def test_presets_set_what_the_published_runs_set():
    """Appendix of arXiv 2112.01527: 50 epochs of 118 287 images by 16, AdamW 1e-4, 0.05, x0.1."""
    for preset in ("coco_panoptic_r50", "coco_panoptic_swin_tiny"):
        config = configs.load(preset, ["data.train=a", "data.val=b"])
        assert config.batch.size == 16
        assert config.trainer.steps == pytest.approx(50 * 118_287 / 16, rel=0.003)
        optimizer = config.optimizer
        assert (optimizer.lr, optimizer.weight_decay, optimizer.clip) == (1e-4, 0.05, 0.01)
        assert optimizer.backbone_lr_multiplier == 0.1
        assert (config.data.crop, list(config.data.scale)) == (1024, [0.1, 2.0])
        assert config.criterion.points == 112 * 112
        assert (config.model.queries, config.model.dim) == (100, 256)
        assert config.model.masked_decoder.layers == 9
        assert config.schedule.milestones == pytest.approx([0.8889, 0.9630], abs=1e-4)


def test_a_mixture_of_shard_sets_is_trained_on_together(photographs):
    both = ["train", "val"]
    sets = f"data.train=[{photographs / 'train'},{photographs / 'val'}]"
    overrides = [sets, f"data.val={photographs / 'val'}", "data.weights=[3,1]", *ANYWHERE]
    config = configs.load("tiny", overrides)
    assert config.data.train == [str(photographs / name) for name in both]
    train, _ = check(config)
    assert [len(store) for store in train] == [10, 5]
    assert configs.merge(configs.to_dict(config), []) == config
    refused(
        r"data\.weights: \[3\.0\] has 1 entries for 2 shard sets", [*overrides, "data.weights=[3]"]
    )


def test_overrides_win_over_the_preset_and_the_preset_over_defaults(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("{seed: 7, trainer: {steps: 11}, data: {train: a, val: b}}")
    config = configs.load(str(preset), ["trainer.steps=12", "trainer.steps=13"])
    assert (config.name, config.seed, config.trainer.steps) == ("mine", 7, 13)
    assert config.trainer.log_every == configs.Config().trainer.log_every
    assert config.data.train == str(Path.cwd() / "a")


def test_values_are_yaml(sets):
    config = configs.load(
        "tiny", [*sets, "data.scale=[0.2,3]", "optimizer.lr=2e-4", "data.limit=null", "name=a=b"]
    )
    assert config.data.scale == [0.2, 3.0]
    assert (config.optimizer.lr, config.data.limit, config.name) == (2e-4, None, "a=b")


def test_resolved_settings_round_trip(sets, tmp_path):
    config = configs.load(
        "tiny", [*sets, "batch.size=48", "model.backbone_config.depths=[1,1,1,2]"]
    )
    assert configs.merge(configs.to_dict(config), []) == config
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load_run(tmp_path) == config
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["batch"] == {"size": 48, "micro": config.batch.micro}
    assert written["model"]["backbone_config"]["depths"] == [1, 1, 1, 2]


def test_differences_name_every_key_that_may_not_change(sets):
    old = configs.load("tiny", [*sets, "seed=1"])
    changes = ["seed=2", "batch.size=32", "trainer.steps=3", "tracking.wandb.mode=disabled"]
    new = configs.load("tiny", [*sets, *changes])
    found = configs.differences(old, new, ("trainer.steps", "tracking."))
    assert found == [f"batch.size: {old.batch.size} -> 32", "seed: 1 -> 2"]
    assert configs.differences(old, old, ()) == []
    more = configs.load("tiny", [*sets, "seed=1", "model.backbone_config.hidden_act=gelu"])
    assert configs.differences(old, more, ()) == ["model.backbone_config.hidden_act: None -> gelu"]


UNREADABLE = {
    "trainer.stepz=5": r"unknown key trainer\.stepz \(did you mean trainer\.steps\?\)",
    "trainr.steps=5": r"unknown key trainr \(did you mean trainer\?\)",
    "batch.sice=5": r"unknown key batch\.sice \(did you mean batch\.size\?\)",
    "criterion.point=5": r"did you mean criterion\.points\?",
    "qqqqqqqq=5": r"^unknown key qqqqqqqq$",
    "trainer.steps=many": r"^trainer\.steps: .*'many'.*Integer",
    "trainer.steps=1.5": r"^trainer\.steps: .*1\.5.*Integer",
    "trainer.steps=": r"^trainer\.steps: .*None.*int",
    "batch.size=x": r"^batch\.size: .*'x'.*Integer",
    "batch.size.x=5": r"^batch\.size: ",
    "scaling.gpu=maybe": r"^scaling\.gpu: .*'maybe'",
    "schedule.milestones=[a]": r"^schedule\.milestones.*'a'.*Float",
    "data=5": r"^data: .*5",
    "data.scale=[0.1": r"^data\.scale=\[0\.1: .*YAML",
    "name=${": r"^name=\$\{: .*YAML",
    "name=${x}": r"^name: .*'x'",
    "steps": r"^'steps' is not key=value$",
    "=5": r"^'=5' is not key=value$",
    "trainer.=5": r"^'trainer\.=5' is not key=value$",
}


@pytest.mark.parametrize("override", UNREADABLE)
def test_unreadable_overrides_are_named(override, sets):
    refused(UNREADABLE[override], [*sets, override])


WRONG = {
    "trainer.steps=0": r"trainer\.steps=0: at least 1",
    "trainer.log_every=0": r"trainer\.log_every=0: at least 1",
    "batch.micro=0": r"batch\.micro=0: at least 1",
    "scaling.workers=0": r"scaling\.workers=0: at least 1",
    "checkpoint.every_steps=0": r"checkpoint\.every_steps=0: at least 1",
    "checkpoint.keep=0": r"checkpoint\.keep=0: at least 1",
    "evaluation.every_steps=0": r"evaluation\.every_steps=0: at least 1",
    "evaluation.images=0": r"evaluation\.images=0: at least 1",
    "evaluation.size_divisor=48": r"evaluation\.size_divisor=48 .*multiple of 32",
    "data.limit=0": r"data\.limit=0: at least 1",
    "data.window=0": r"data\.window=0: at least 1",
    "data.weights=[1,2]": r"data\.weights: \[1\.0, 2\.0\] has 2 entries for 1 shard sets",
    "data.train=[]": r"data\.train=\[\]: give the folder",
    "data.train=5": r"data\.train=5: give the folder",
    "data.loader_workers=-1": r"data\.loader_workers=-1: at least 0",
    "failure.max_restarts=-1": r"failure\.max_restarts=-1: at least 0",
    "optimizer.lr=-1": r"optimizer\.lr=-1\.0: at least 0",
    "criterion.points=0": r"criterion\.points=0; it must be at least 1",
    "criterion.oversample=0": r"criterion\.oversample=0\.0; it must be at least 1",
    "criterion.class_normalizer=mean": r"criterion\.class_normalizer=mean; .*global, local",
    "data.crop=100": r"data\.crop=100 is not a multiple of 32",
    "data.crop=0": r"data\.crop=0 is not a multiple of 32",
    "data.scale=[2,1]": r"data\.scale=\[2\.0, 1\.0\]: ",
    "data.scale=[1]": r"data\.scale=\[1\.0\]: ",
    "data.augment=flip": r"data\.augment=flip: known are lsj, shortest_edge, none",
    "data.resize=torch": r"data\.resize=torch: known are cv2, pil",
    "data.crop_width=100": r"data\.crop_width=100 is not a multiple of 32",
    "data.base=0": r"data\.base=0: at least 1",
    "data.category_max_area=2": r"data\.category_max_area=2\.0: give a share",
    "data.stall_timeout_s=0": r"data\.stall_timeout_s=0: at least 1",
    "data.stages=[nowhere:f]": r"data\.stages=nowhere:f: No module named 'nowhere'; .*PYTHONPATH=",
    "data.stages=[json:nothing]": r"data\.stages=json:nothing: json has no function nothing",
    "data.stages=[json.loads]": r"data\.stages: 'json\.loads' is not package\.module:function",
    "task=panoptik": r"task=panoptik: known are panoptic, instance, semantic",
    "zero.stage=4": r"zero\.stage=4: known are 0, 1, 2, 3",
    "tracking.wandb.mode=of": r"tracking\.wandb\.mode=of: known are offline, online, disabled",
    "schedule.name=cosine": r"schedule\.name=cosine: known are step, poly",
    "name=a/b": r"name=a/b: use letters",
    "model.backbone=resnet51": r"model\.backbone=resnet51; choose one of .*resnet50",
    "model.backbone_config.width=3": r"model\.backbone_config\.width is unknown; known: ",
    "model.backbone_config.depths=[1]": r"backbone_config\.depths=\[1\]: four stages",
    "model.backbone_config.hidden_sizes=[8]": r"hidden_sizes=\[8\]: four stages",
    "model.norm=layer": r"model\.norm=layer; choose one of .*group",
    "model.dim=36": r"model\.dim=36; it must be a multiple of 8",
    "model.queries=0": r"model\.queries=0; it must be at least 1",
    "model.weights=weights/none": r"model\.weights=.*weights/none is no folder; .*none trains",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_values_are_named_before_anything_starts(override, sets):
    refused(WRONG[override], [*sets, override])


def test_stage_3_is_not_compiled(sets):
    refused(
        r"model\.compile=true with zero\.stage=3: ", [*sets, "model.compile=true", "zero.stage=3"]
    )
    check(configs.load("tiny", [*sets, "model.compile=true"]))


def test_the_batch_must_divide(sets):
    sizes = ["batch.size=16", "batch.micro=4", "scaling.workers=3"]
    refused(r"batch\.size: 16 .*batch\.micro=4 x scaling\.workers=3", [*sets, *sizes])
    check(configs.load("tiny", [*sets, *sizes, "batch.size=24"]))


def test_a_gpu_that_is_not_there(sets, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(r"scaling\.gpu=true: this machine has no GPU", [*sets, "scaling.gpu=true"])


def test_data_must_be_said_and_be_a_shard_set(sets, tmp_path):
    refused(r"^data\.train is not set; add data\.train=SHARDS/train$", [])
    refused(r"^data\.val is not set; add data\.val=SHARDS/val$", sets[:1])
    refused(rf"data\.val: {tmp_path}: not a shard set", [*sets, f"data.val={tmp_path}"])
    refused(
        r"data\.train: /nowhere: not a shard set .*launch\.sh build", [*sets, "data.train=/nowhere"]
    )


def test_unknown_presets(tmp_path, sets):
    refused(r"no preset 'tyni' \(did you mean tiny\?\); known: .*coco_panoptic_r50", [], "tyni")
    refused(r"no preset '/nowhere/x\.yaml'", [], "/nowhere/x.yaml")
    preset = tmp_path / "list.yaml"
    preset.write_text("- a")
    refused(r"list\.yaml: not a mapping", sets, str(preset))
    preset.write_text("trainer: {stepz: 3}")
    refused(r"unknown key trainer\.stepz", sets, str(preset))


def test_sets_must_serve_the_task_and_have_the_same_classes(sets, tmp_path):
    raw = write(tmp_path / "raw", [sky("a.png")], "train", instances=False)
    write(raw, [sky("a.png")], "val", instances=False)
    build("coco", raw, tmp_path / "out", jobs=1, report=lambda _: None)
    other = [f"data.{name}={tmp_path / 'out' / name}" for name in ("train", "val")]
    check(configs.load("tiny", other))
    refused(r"task=instance: data\.train=.*out/train serves panoptic", [*other, "task=instance"])
    refused(r"data\.train=.*photographs/train.*data\.val=.*out/val: other", [sets[0], other[1]])
    mixed = f"data.train=[{sets[0].partition('=')[2]},{tmp_path / 'out' / 'train'}]"
    refused(
        r"data\.train: .*out/train: its classes differ from those of .*photographs/train",
        [mixed, sets[1]],
    )


def test_weights_are_loaded_before_workers_start(sets, tmp_path):
    """A folder that fits passes, one that does not is named."""
    fields = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16],
              "depths": [1, 1, 1, 1]}  # fmt: skip
    folder = tmp_path / "weights"
    ResNetBackbone(ResNetConfig(**fields)).save_pretrained(folder)
    _, _, *overrides = small.words(tmp_path, *sets, f"model.weights={folder}")
    check(configs.load("tiny", overrides))
    deeper = "model.backbone_config.depths=[1,1,1,2]"
    refused(r"model\.weights='.*weights' .*stages\.3", [*overrides, deeper])
    (folder / "model.safetensors").unlink()
    refused(r"model\.weights='.*weights' cannot be loaded: .*model\.safetensors", overrides)


def test_more_workers_than_gpus_are_refused(sets, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    gpus = ["scaling.gpu=null", "scaling.workers=2"]
    refused(r"scaling\.workers=2: .* 1 GPUs; give scaling\.workers=1 or", [*sets, *gpus])
    check(configs.load("tiny", [*sets, "scaling.gpu=false", "scaling.workers=2"]))


@pytest.mark.parametrize(
    ("gpus", "gpu", "workers"), [(4, "null", 4), (4, "false", 1), (0, "null", 1)]
)
def test_all_gpus_of_the_machine_are_used_unless_it_is_said(gpus, gpu, workers, sets, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    settings = [*sets, f"scaling.gpu={gpu}"]
    assert configs.load("tiny", [*settings, "scaling.workers=null"]).scaling.workers == workers
    assert configs.load("tiny", [*settings, "scaling.workers=2"]).scaling.workers == 2
