"""Presets, the order in which settings override each other, their types, and their errors."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import ResNetBackbone, ResNetConfig

from jobs import config as configs
from jobs.check import check
from jobs.preset import names
from model.mask2former import Mask2Former, ModelSettings
from shards.build.build import build
from shards.errors import UsageError
from tests.jobs import small
from tests.shards.raw import sky, write

PRESETS = names()
# Overrides with which a preset for large machines runs anywhere: no GPU and no weights.
ANYWHERE = ("scaling.gpu=false", "model.weights=none")


@pytest.fixture(scope="module")
def sets(photographs):
    return [f"data.{name}={photographs / name}" for name in ("train", "val")]


def refused(pattern: str, overrides: list[str], preset: str = "tiny") -> None:
    """Check that loading or checking raises a UsageError of one line that matches."""
    with pytest.raises(UsageError) as error:
        check(configs.load(preset, overrides))
    assert "\n" not in str(error.value)
    assert re.search(pattern, str(error.value)), error.value


NETWORKS: dict[str, Mask2Former] = {}  # by the repr of their settings; presets share them


def built_once(settings: ModelSettings, classes: int) -> Mask2Former:
    if repr(settings) not in NETWORKS:
        NETWORKS[repr(settings)] = Mask2Former(settings, classes)
    return NETWORKS[repr(settings)]


@pytest.mark.filterwarnings("ignore:model.norm=sync_batch needs a GPU")
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_checks(preset, sets, monkeypatch):
    monkeypatch.setattr("jobs.check.build", built_once)
    config = configs.load(preset, [*sets, *ANYWHERE])
    (train,), val = check(config)
    assert (len(train), len(val)) == (10, 5)
    assert config.name == preset


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
    assert config.data.train == [str(Path.cwd() / "a")]


VALUES = {
    "name=010": "010",
    "name=007": "007",
    "name=12e5678": "12e5678",
    "name=1.10": "1.10",
    "name=yes": "yes",
    "name=null": "null",
    "tracking.wandb.project=run 2, a [b] {c} 'd' \"e\" ~ *f &g !h @i": (
        "run 2, a [b] {c} 'd' \"e\" ~ *f &g !h @i"
    ),
    "data.cache.folder=~tilde: x #2 ${oc.env:HOME}=": "~tilde: x #2 ${oc.env:HOME}=",
    "data.cache.folder=[a": "[a",
    "trainer.steps=12": 12,
    "data.limit=null": None,
    "data.limit=+3": 3,
    "optimizer.lr=2e-4": 2e-4,
    "optimizer.lr=.5": 0.5,
    "optimizer.weight_decay=1.0e-05": 1e-5,
    "scaling.gpu=false": False,
    "model.compile=true": True,
    "data.scale=[0.2,3]": [0.2, 3.0],
    "schedule.milestones=[]": [],
    "data.train=/a b,c #d: ${e}": ["/a b,c #d: ${e}"],
    "data.train=[/a, '/b,c', \"/${d}\", /010, /e#f]": ["/a", "/b,c", "/${d}", "/010", "/e#f"],
    "model.backbone_config.depths=[1,1,1,2]": [1, 1, 1, 2],
    "model.backbone_config.hidden_act=gelu": "gelu",
    "model.backbone_config.layer_type='010'": "010",
    "model.backbone_config.x={a: 1, b: 0.5, c: [true, null], d: no}": {
        **{"a": 1, "b": 0.5, "c": [True, None], "d": "no"}
    },
}


@pytest.mark.parametrize("override", VALUES)
def test_a_value_has_the_type_that_its_setting_declares(override, sets, tmp_path):
    """The same text in a preset, and in the config.yaml of a run, gives the same value."""
    key, _, _ = override.partition("=")
    config = configs.load("tiny", [*sets, override])
    value: Any = configs.to_dict(config)
    for name in key.split("."):
        value = value[name]
    assert value == VALUES[override]
    assert type(value) is type(VALUES[override])
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load_run(tmp_path) == config


def test_a_preset_has_the_types_that_its_settings_declare(sets, tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text(
        "name: 010\n"
        "data: {cache: {folder: '${oc.env:HOME}'}, train: a}\n"
        "tracking:\n  wandb:\n    project: ${x} yes\n"
    )
    config = configs.load(str(preset), sets[1:])
    assert config.name == "010"
    assert config.data.cache.folder == "${oc.env:HOME}"
    assert config.tracking.wandb.project == "${x} yes"
    assert config.data.train == [str(Path.cwd() / "a")]
    for text, pattern in {
        "trainer: {steps: 010}": r"^trainer\.steps=010 has a leading zero; write 10$",
        "trainer: {steps: '10'}": r"^trainer\.steps=10; it must be a whole number$",
        "scaling: {gpu: yes}": r"^scaling\.gpu=yes; it must be true, false, or null$",
        "seed: 1\nseed: 2": r"mine\.yaml: a key is repeated",
        "trainer: 5": r"^trainer=5; it must be a section$",
        "a: [": r"mine\.yaml: while parsing",
        "\\x00": r"mine\.yaml: ",
    }.items():
        preset.write_text(text)
        refused(pattern, sets, str(preset))
    preset.write_bytes(b"name: \xff")
    refused(r"mine\.yaml: .*utf-8", sets, str(preset))


def test_a_run_of_an_older_version_loads(sets, tmp_path):
    """It has one training set as a text, and batch.global for batch.size."""
    config = configs.load("tiny", [*sets, "batch.size=48"])
    old = configs.to_dict(config)
    old["data"]["train"] = old["data"]["train"][0]
    old["batch"] = {"global": old["batch"]["size"], "micro": old["batch"]["micro"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert configs.load_run(tmp_path) == config


def test_settings_are_read_without_the_heavy_imports():
    """An unknown key is reported in tenths of a second instead of seconds."""
    heavy = "{'torch', 'transformers', 'ray', 'deepspeed', 'webdataset', 'pyarrow'}"
    program = (
        "import sys; from jobs import config; from shards.errors import UsageError\n"
        "try: config.load('tiny', ['trainer.stepz=1'])\n"
        f"except UsageError: assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", program], cwd=small.ROOT, check=True, timeout=60)


def test_resolved_settings_round_trip(sets, tmp_path):
    config = configs.load(
        "tiny", [*sets, "batch.size=48", "model.backbone_config.depths=[1,1,1,2]"]
    )
    assert configs.merge(configs.to_dict(config), []) == config
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load_run(tmp_path) == config
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["batch"] == {"size": 48, "micro": config.batch.micro, "measured_on": None}
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
    "trainer.stepz=5": r"^trainer\.stepz is not a setting; did you mean trainer\.steps\?$",
    "trainr.steps=5": r"^trainr is not a setting; did you mean trainer\?$",
    "steps=5": r"^steps is not a setting; did you mean trainer\.steps\?$",
    "batch.sice=5": r"^batch\.sice is not a setting; did you mean batch\.size\?$",
    "criterion.point=5": r"did you mean criterion\.points\?",
    "qqqqqqqq=5": r"^qqqqqqqq is not a setting; \./launch\.sh settings lists all$",
    "trainer={stepz: 5}": r"^trainer\.stepz is not a setting; did you mean",
    "trainer.steps=many": r"^trainer\.steps=many; it must be a whole number$",
    "trainer.steps=1.5": r"^trainer\.steps=1\.5; it must be a whole number$",
    "trainer.steps=true": r"^trainer\.steps=true; it must be a whole number$",
    "trainer.steps=": r"^trainer\.steps=; it must be a whole number$",
    "trainer.steps=010": r"^trainer\.steps=010 has a leading zero; write 10$",
    "trainer.steps=null": r"^trainer\.steps=null; it must be a whole number$",
    "seed=0123": r"^seed=0123 has a leading zero; write 123$",
    "data.cache.gib=010": r"^data\.cache\.gib=010 has a leading zero; write 10$",
    "data.scale=[0.1,02]": r"^data\.scale=02 has a leading zero; write 2$",
    "data.limit=~": r"^data\.limit=~; it must be a whole number or null$",
    "batch.size=x": r"^batch\.size=x; it must be a whole number$",
    "batch.size.x=5": r"^batch\.size is not a section; it is a whole number$",
    "batch.size={a: 1}": r"^batch\.size is not a section; it must be a whole number$",
    "scaling.gpu=yes": r"^scaling\.gpu=yes; it must be true, false, or null$",
    "model.compile=True": r"^model\.compile=True; it must be true, false, or null$",
    "optimizer.lr=nan": r"^optimizer\.lr=nan; it must be a number$",
    "optimizer.lr=1e400": r"^optimizer\.lr=inf; it must be a finite number below 2\^63$",
    "schedule.milestones=[a]": r"^schedule\.milestones=a; it must be a number$",
    "data.scale=0.5": r"^data\.scale=0\.5; it must be a list$",
    "data=5": r"^data=5; it must be a section$",
    "data.scale=[0.1": r"^data\.scale=\[0\.1 is not valid YAML; write a list as \[a, b\]",
    "data.train=[a] # b": r"^data\.train=\[a\] # b has text after the end of its value",
    "data.train=[run #2]": r"^data\.train=\[run #2\] is not valid YAML; .*quote texts",
    "data.train=[${x}]": r"^data\.train=\[\$\{x\}\] is not valid YAML; .*quote texts",
    "name=${x}": r"^name=\$\{x\}; use letters",
    "name=run #2": r"^name=run #2; use letters",
    "steps": r"^'steps' is not key=value with a dotted key",
    "=5": r"^'=5' is not key=value with a dotted key",
    "trainer.=5": r"^'trainer\.=5' is not key=value with a dotted key",
}


@pytest.mark.parametrize("override", UNREADABLE)
def test_unreadable_overrides_are_named(override, sets):
    refused(UNREADABLE[override], [*sets, override])


WRONG = {
    "zero.offload=optimizer": r"zero\.offload=optimizer with zero\.stage=0: .*zero\.stage=1 too",
    "optimizer.ema=1": r"optimizer\.ema=1; it must be less than 1",
    "trainer.steps=0": r"trainer\.steps=0; it must be at least 1",
    "trainer.log_every=0": r"trainer\.log_every=0; it must be at least 1",
    "batch.micro=0": r"batch\.micro=0; it must be at least 1",
    "scaling.workers=0": r"scaling\.workers=0; it must be at least 1",
    "checkpoint.every_steps=0": r"checkpoint\.every_steps=0; it must be at least 1",
    "checkpoint.keep=0": r"checkpoint\.keep=0; it must be at least 1",
    "evaluation.every_steps=0": r"evaluation\.every_steps=0; it must be at least 1",
    "evaluation.images=0": r"evaluation\.images=0; it must be at least 1",
    "evaluation.size_divisor=48": r"evaluation\.size_divisor=48; .*multiple of 32",
    "data.limit=0": r"data\.limit=0; it must be at least 1",
    "data.window=0": r"data\.window=0; it must be at least 1",
    "data.weights=[1,2]": r"data\.weights.*1\.0, 2\.0.* one ",
    "data.train=[]": r"data\.train is not set; add data\.train=",
    "data.train=": r"data\.train=; it must not be empty",
    "data.loader_workers=-1": r"data\.loader_workers=-1; it must be at least 0",
    "failure.max_restarts=-1": r"failure\.max_restarts=-1; it must be at least 0",
    "optimizer.lr=-1": r"optimizer\.lr=-1; it must be at least 0",
    "criterion.points=0": r"criterion\.points=0; it must be at least 1",
    "criterion.oversample=0": r"criterion\.oversample=0; it must be at least 1",
    "criterion.class_normalizer=mean": r"criterion\.class_normalizer=mean; .*global, local",
    "data.crop=100": r"data\.crop=100; it must be a multiple of 32",
    "data.crop=0": r"data\.crop=0; it must be at least 32",
    "data.scale=[2,1]": r"data\.scale=\[2\.0, 1\.0\]; give the smallest",
    "data.scale=[1]": r"data\.scale=\[1\.0\]; give the smallest",
    "data.augment=flip": r"data\.augment=flip; choose one of lsj, shortest_edge, none",
    "data.resize=torch": r"data\.resize=torch; choose one of cv2, pil",
    "data.crop_width=100": r"data\.crop_width=100; it must be a multiple of 32",
    "data.base=0": r"data\.base=0; it must be at least 1",
    "data.category_max_area=2": r"data\.category_max_area=2; it must be at most 1",
    "data.stall_timeout_s=0": r"data\.stall_timeout_s=0; it must be at least 1",
    "data.stages=[nowhere:f]": r"data\.stages=nowhere:f: No module named 'nowhere'; .*PYTHONPATH=",
    "data.stages=[json:nothing]": r"data\.stages=json:nothing: json has no function nothing",
    "data.stages=[json.loads]": r"data\.stages=\[json\.loads\]; it must be package\.module:",
    "task=panoptik": r"task=panoptik; choose one of panoptic, instance, semantic",
    "zero.stage=4": r"zero\.stage=4; choose one of 0, 1, 2, 3",
    "tracking.wandb.mode=of": r"tracking\.wandb\.mode=of; choose one of offline, online, disabled",
    "tracking.wandb.project=": r"tracking\.wandb\.project=; use 1 to 128 characters",
    "tracking.wandb.project=${oc.env:HOME}": r"=\$\{oc\.env:HOME\}; use 1 to 128 characters",
    "evaluation.short=2000": r"evaluation\.short=2000 is greater than long=160; write at most 160",
    "schedule.name=cosine": r"schedule\.name=cosine; choose one of step, poly",
    "schedule.milestones=[2.5]": r"schedule\.milestones=\[2\.5\]; it must be at most 1",
    "name=a/b": r"name=a/b; use letters",
    "model.backbone=resnet51": r"model\.backbone=resnet51; choose one of .*resnet50",
    "model.backbone_config.width=3": r"model\.backbone_config\.width is unknown; known: ",
    "model.backbone_config.depths=[1]": r"backbone_config\.depths=\[1\]: give four stages",
    "model.backbone_config.hidden_sizes=[8]": r"hidden_sizes=\[8\]: give four stages",
    "model.norm=layer": r"model\.norm=layer; choose one of .*group",
    "model.dim=36": r"model\.dim=36; it must be a multiple of 8",
    "model.queries=0": r"model\.queries=0; it must be at least 1",
    "model.weights=weights/none": r"model\.weights=.*/none: .* does not exist; .*from scratch",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_values_are_named_before_anything_starts(override, sets):
    refused(WRONG[override], [*sets, override])


def test_stage_3_is_neither_compiled_nor_averaged(sets):
    refused(
        r"model\.compile=true with zero\.stage=3: ", [*sets, "model.compile=true", "zero.stage=3"]
    )
    refused(
        r"optimizer\.ema=0\.99 with zero\.stage=3: .*; write zero\.stage=2, or leave",
        [*sets, "optimizer.ema=0.99", "zero.stage=3"],
    )
    check(configs.load("tiny", [*sets, "model.compile=true", "optimizer.ema=0.99"]))


def test_workers_share_any_batch_with_an_image_for_each(sets):
    sizes = ["batch.size=4", "batch.micro=3", "scaling.gpu=false"]
    check(configs.load("tiny", [*sets, *sizes, "scaling.workers=3"]))
    pattern = r"batch\.size: 4 images are too few for scaling\.workers=5, "
    refused(pattern, [*sets, *sizes, "scaling.workers=5"])
    sizes += ["batch.size=16", "scaling.workers=3", "criterion.class_normalizer=local"]
    refused(
        r"batch\.size: 16 .*x scaling\.workers=3; .*; write batch\.size=9 or 18", [*sets, *sizes]
    )
    check(configs.load("tiny", [*sets, *sizes, "batch.size=18"]))


def test_a_missing_gpu_is_refused(sets, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(r"scaling\.gpu=true: this machine has no GPU", [*sets, "scaling.gpu=true"])


def test_data_must_be_given_and_be_a_shard_set(sets, tmp_path):
    refused(r"^data\.train is not set; add data\.train=SHARDS/train$", [])
    refused(
        r"^data\.val is not set; add data\.val=SHARDS/val; .* build one from other images", sets[:1]
    )
    refused(rf"data\.val={tmp_path}: not a shard set", [*sets, f"data.val={tmp_path}"])
    refused(
        r"data\.train=/nowhere: not a shard set .*launch\.sh build", [*sets, "data.train=/nowhere"]
    )


def test_unknown_presets(tmp_path, sets):
    refused(r"no preset 'tyni'; did you mean tiny\?", [], "tyni")
    refused(r"no preset 'qq'; docs/presets\.md lists them, such as coco_panoptic_r50", [], "qq")
    refused(r"no preset '/nowhere/x\.yaml'", [], "/nowhere/x.yaml")
    preset = tmp_path / "list.yaml"
    preset.write_text("- a")
    refused(r"list\.yaml: not a mapping", sets, str(preset))
    preset.write_text("trainer: {stepz: 3}")
    refused(r"trainer\.stepz is not a setting", sets, str(preset))


def test_sets_must_serve_the_task_and_have_the_same_classes(sets, tmp_path):
    raw = write(tmp_path / "raw", [sky("a.png")], "train", instances=False)
    write(raw, [sky("a.png")], "val", instances=False)
    build("coco", raw, tmp_path / "out", jobs=1, report=lambda _: None)
    other = [f"data.{name}={tmp_path / 'out' / name}" for name in ("train", "val")]
    check(configs.load("tiny", other))
    pattern = r"data\.train=.*out/train: the set serves panoptic.*; write task=panoptic"
    refused(pattern, [*other, "task=instance"])
    pattern = (
        r"data\.train=.*photographs/train and data\.val=.*out/val have different classes: 133 and"
    )
    refused(pattern, [sets[0], other[1]])
    mixed = f"data.train=[{sets[0].partition('=')[2]},{tmp_path / 'out' / 'train'}]"
    refused(
        r"data\.train=.*out/train: its classes differ from those of .*photographs/train",
        [mixed, sets[1]],
    )


def test_weights_are_loaded_before_workers_start(sets, tmp_path):
    """A folder that fits is accepted; one that does not is named."""
    fields = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16],
              "depths": [1, 1, 1, 1]}  # fmt: skip
    folder = tmp_path / "weights"
    ResNetBackbone(ResNetConfig(**fields)).save_pretrained(folder)
    _, _, *overrides = small.words(tmp_path, *sets, f"model.weights={folder}")
    check(configs.load("tiny", overrides))
    deeper = "model.backbone_config.depths=[1,1,1,2]"
    refused(r"model\.weights='.*weights' .*stages\.3", [*overrides, deeper])
    whole = (folder / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "pytorch_model.bin"):
        for damaged in (b"", b"version https", whole[: len(whole) // 2], whole[:4], b"PK\3\4" * 9):
            (folder / name).write_bytes(damaged)
            refused(r"model\.weights='.*weights' cannot be loaded: .", overrides)
        (folder / name).unlink()
    refused(r"model\.weights=.*weights: the folder holds no weights; ", overrides)


def test_more_workers_than_gpus_are_refused(sets, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    gpus = ["scaling.gpu=null", "scaling.workers=2"]
    refused(
        r"scaling\.workers=2: .* only 1 of the GPUs .*; write scaling\.workers=1 or", [*sets, *gpus]
    )
    check(configs.load("tiny", [*sets, "scaling.gpu=false", "scaling.workers=2"]))


@pytest.mark.parametrize(
    ("gpus", "gpu", "workers"), [(4, "null", 4), (4, "false", 1), (0, "null", 1)]
)
def test_all_gpus_are_used_unless_a_number_is_given(gpus, gpu, workers, sets, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    settings = [*sets, f"scaling.gpu={gpu}", "batch.size=16"]
    assert configs.load("tiny", [*settings, "scaling.workers=null"]).scaling.workers == workers
    assert configs.load("tiny", [*settings, "scaling.workers=2"]).scaling.workers == 2


def test_nested_aliases_of_a_preset_are_not_expanded(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError, match="an alias"):
        configs.load(str(path), [])


def test_the_environment_is_never_interpolated_into_settings(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data: {train: ['/${oc.env:HOME}'], val: '/${oc.env:HOME}'}\n")
    config = configs.load(str(path), ["model.init_from=/${oc.env:HOME}", "scaling.gpu=false"])
    assert config.data.val == config.data.train[0] == config.model.init_from == "/${oc.env:HOME}"
    with pytest.raises(UsageError, match=r"tracking\.wandb\.project=\$\{oc\.env:HOME\}"):
        configs.load(str(path), ["tracking.wandb.project=${oc.env:HOME}"])
