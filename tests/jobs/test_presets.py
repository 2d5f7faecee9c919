"""Presets: how they extend each other, and the published runs that they stand for."""

import functools
import re
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch

from jobs import config as configs
from jobs import preset
from jobs.preset import names, preset_path, read_preset
from model.mask2former import Mask2Former
from pipeline.data.augment.recipes import BASE_SCALES, LONGEST
from shards.errors import UsageError
from tests.jobs import small


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder of presets with an empty folder of bases."""
    monkeypatch.setattr(preset, "PRESETS", tmp_path)
    monkeypatch.setattr(preset, "BASES", tmp_path / "bases")
    (tmp_path / "bases").mkdir()
    return tmp_path


def write(folder, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_preset_replaces_settings_of_its_bases(folder):
    every = "{seed: 1, data: {crop: 64, scale: [1, 2]}, trainer: {steps: 9}}"
    some = "{base: every, seed: 2, model: {backbone_config: {depths: [1, 1, 1, 1]}}}"
    write(folder / "bases", every=every, some=some)
    write(folder, mine="{base: some, data: {scale: [0.5, 3.0]}, model: {queries: 7}}")
    config = configs.merge(read_preset("mine"), ["model.queries=8"])
    assert (config.seed, config.trainer.steps, config.model.queries) == (2, 9, 8)
    assert (config.data.crop, config.data.scale) == (64, [0.5, 3.0])  # a list is replaced
    assert config.model.backbone_config == {"depths": [1, 1, 1, 1]}


def test_a_file_of_the_user_extends_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{base: tiny, name: '010', optimizer: {lr: 3.0e-4}, runs: '${oc.env:HOME}'}")
    mine, tiny = (configs.merge(read_preset(p), []) for p in (str(path), "tiny"))
    assert configs.differences(tiny, mine, ()) == [
        "name:  -> 010",
        "optimizer.lr: 0.001 -> 0.0003",
        "runs: runs -> ${oc.env:HOME}",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: tinny", r"mine\.yaml: base: no preset or base 'tinny'; did you mean tiny\?"),
        ("base: 7", r"base: no preset or base '7'; write the name of a preset, such as"),
        ("base: ../tiny", r"base: no preset or base '\.\./tiny'; did you mean tiny\?"),
        ("{base: tiny, base: tiny}", r"mine\.yaml: .*a key is repeated"),
        ("{base: first}", r"mine\.yaml: its bases form a cycle: first -> second -> first"),
        ("{base: mine}", r"mine\.yaml: its bases form a cycle: mine -> mine"),
        ("{base: broken}", r"broken\.yaml: not a mapping of settings"),
    ],
)
def test_wrong_bases_are_refused(folder, text, message):
    write(folder, tiny="seed: 1", first="base: second", second="base: first", broken="- a")
    write(folder, mine=text)
    with pytest.raises(UsageError, match=message):
        read_preset("mine")


def test_a_base_is_neither_a_preset_nor_a_setting():
    with pytest.raises(UsageError, match=r"no preset 'published'"):
        read_preset("published")
    with pytest.raises(UsageError, match=r"base is not a setting"):
        configs.load("tiny", ["base=tiny"])


class Sizes(NamedTuple):
    """The published values that depend on the data set.

    Attributes:
        shortest: Sizes of the shorter side in training; none for large-scale jitter.
        longest: Greatest length of the longer side in training.
        crop: Height and width of a training crop.
        test: Lengths of the shorter side and, at most, of the longer side at test time.
    """

    shortest: list[int]
    longest: int | None
    crop: tuple[int, int]
    test: tuple[int, int]


JITTER = Sizes([], None, (1024, 1024), (800, 1333))
SHORT_512 = [256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024]
SHORT_640 = [320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1088, 1152, 1216, 1280]
SHORT_1024 = [512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945,
              2048]  # fmt: skip
SHORT_2048 = [1024, 1228, 1433, 1638, 1843, 2048, 2252, 2457, 2662, 2867, 3072, 3276, 3481, 3686,
              3891, 4096]  # fmt: skip
ADE20K_512 = Sizes(SHORT_512, 2048, (512, 512), (512, 2048))
ADE20K_640 = Sizes(SHORT_640, 2560, (640, 640), (640, 2560))
CITYSCAPES = Sizes(SHORT_1024, 4096, (512, 1024), (1024, 2048))
VISTAS = Sizes(SHORT_2048, 8192, (1024, 1024), (2048, 2048))

# Published runs (arXiv 2112.01527, configs of facebookresearch/Mask2Former): the backbones of each
# data set and task. Swin-L is pretrained on ImageNet-22k everywhere.
ALL = ("r50", "r101", "swin_tiny", "swin_small", "swin_base", "swin_base_22k", "swin_large")
RUNS = {
    ("coco", "panoptic"): ALL,
    ("coco", "instance"): ALL,
    ("ade20k", "semantic"): ALL,
    ("ade20k", "panoptic"): ("r50", "swin_large"),
    ("ade20k", "instance"): ("r50", "swin_large"),
    **dict.fromkeys((("cityscapes", task) for task in ("panoptic", "instance", "semantic")),
                    tuple(backbone for backbone in ALL if backbone != "swin_base")),
    ("vistas", "panoptic"): ("r50", "swin_large"),
    ("vistas", "semantic"): ("r50", "swin_large"),
}  # fmt: skip
PUBLISHED = [(*run, backbone) for run, backbones in RUNS.items() for backbone in backbones]
STEPS = {"coco": 368_750, "ade20k": 160_000, "cityscapes": 90_000, "vistas": 300_000}
CLASSES = {
    ("coco", "panoptic"): 133, ("coco", "instance"): 80, ("ade20k", "semantic"): 150,
    ("ade20k", "panoptic"): 150, ("ade20k", "instance"): 100, ("cityscapes", "panoptic"): 19,
    ("cityscapes", "instance"): 8, ("cityscapes", "semantic"): 19, ("vistas", "panoptic"): 65,
    ("vistas", "semantic"): 65,
}  # fmt: skip
BACKBONES = {
    "r50": "resnet50", "r101": "resnet101", "swin_tiny": "swin_tiny", "swin_small": "swin_small",
    "swin_base": "swin_base", "swin_base_22k": "swin_base", "swin_large": "swin_large",
}  # fmt: skip
WEIGHTS = {
    "r50": "resnet50-0676ba61.pth",
    "r101": "resnet101-63fe2227.pth",
    "swin_tiny": "swin-tiny",
    "swin_small": "swin_small_patch4_window7_224.pth",
    "swin_base": "swin_base_patch4_window12_384.pth",
    "swin_base_22k": "swin_base_patch4_window12_384_22k.pth",
    "swin_large": "swin_large_patch4_window12_384_22k.pth",
}
# Parameters with 133 classes and 100 queries, millions as published, and exactly. Frozen batch
# normalization has constants instead of parameters: 53,120 in R50, and 105,344 in R101.
PARAMETERS = {
    "r50": (44, 44_036_998),
    "r101": (63, 63_029_126),
    "swin_tiny": (47, 47_435_264),
    "swin_small": (69, 68_753_168),
    "swin_base": (107, 106_917_822),
    "swin_base_22k": (107, 106_917_822),
    "swin_large": (216, 215_484_410),
}
FROZEN = {"r50": 53_120, "r101": 105_344}
PER_CLASS, PER_QUERY = 257, 512


def resolved(data: str, task: str, backbone: str) -> configs.Config:
    return configs.merge(read_preset(f"{data}_{task}_{backbone}"), [])


def sizes_of(data: str, task: str, backbone: str) -> Sizes:
    if data == "ade20k":
        is_large = task != "semantic" or backbone in ("swin_base", "swin_base_22k", "swin_large")
        return ADE20K_640 if is_large else ADE20K_512
    return {"coco": JITTER, "cityscapes": CITYSCAPES, "vistas": VISTAS}[data]


def test_every_published_run_has_a_preset():
    assert {f"{data}_{task}_{b}" for data, task, b in PUBLISHED} | {"tiny"} == set(names())


@pytest.mark.parametrize("run", PUBLISHED, ids="_".join)
def test_a_preset_sets_what_the_published_run_set(run):
    data, task, backbone = run
    config = resolved(*run)
    model, augment = config.model, config.data
    assert config.task == task
    optimizer = config.optimizer
    assert (config.batch.size, optimizer.lr, optimizer.weight_decay) == (16, 1e-4, 0.05)
    assert (optimizer.backbone_lr_multiplier, optimizer.clip) == (0.1, 0.01)
    assert (optimizer.layer_decay, optimizer.ema, config.schedule.warmup_steps) == (None, None, 0)
    is_large = backbone == "swin_large"
    steps = STEPS[data] * (2 if data == "coco" and is_large else 1)
    assert config.trainer.steps == steps
    if data == "coco":
        drops = [round(share * steps) for share in config.schedule.milestones]
        assert drops == ([655_556, 710_184] if is_large else [327_778, 355_092])
        assert (config.schedule.name, config.schedule.factor) == ("step", 0.1)
    else:
        assert (config.schedule.name, config.schedule.power) == ("poly", 0.9)
    sizes = sizes_of(*run)
    assert augment.crop_size == sizes.crop
    assert (config.evaluation.short, config.evaluation.long) == sizes.test
    if sizes.shortest:
        assert augment.augment == "shortest_edge"
        tenths = [int(Fraction(scale * augment.base, 10)) for scale in BASE_SCALES]
        assert (tenths, LONGEST * augment.base) == (sizes.shortest, sizes.longest)
    else:
        assert (augment.augment, augment.scale) == ("lsj", [0.1, 2.0])
    assert (augment.category_max_area, augment.keep_empty) == (1.0, None)
    criterion, segment = config.criterion, config.evaluation.segment
    weights = (criterion.class_weight, criterion.mask_weight, criterion.dice_weight)
    assert (*weights, criterion.no_object_weight) == (2.0, 5.0, 5.0, 0.1)
    assert (criterion.points, criterion.oversample, criterion.importance) == (12544, 3.0, 0.75)
    images_of_a_gpu = 1 if is_large else 2  # of 16 or 8 GPUs
    assert (criterion.class_normalizer, criterion.class_group) == ("groups", images_of_a_gpu)
    threshold = 0.0 if data == "vistas" else 0.8
    assert (segment.object_threshold, segment.overlap_threshold) == (threshold, 0.8)
    assert (segment.detections, config.evaluation.size_divisor) == (100, 32)
    every = steps if data == "vistas" else 5000  # none while training
    assert config.evaluation.every_steps == every
    assert (model.backbone, model.weights) == (BACKBONES[backbone], f"weights/{WEIGHTS[backbone]}")
    assert (model.queries, model.dim) == (200 if is_large and task != "semantic" else 100, 256)
    encoder, decoder = model.pixel_decoder, model.masked_decoder
    assert (encoder.layers, encoder.heads, encoder.points, encoder.feedforward) == (6, 8, 4, 1024)
    assert (decoder.layers, decoder.heads, decoder.feedforward) == (9, 8, 2048)
    is_trained = data == "cityscapes" or run == ("ade20k", "semantic", "r101")
    if backbone in FROZEN:
        assert model.norm == ("sync_batch" if is_trained else "frozen_batch")
    else:
        assert model.drop_path == 0.3
    assert (model.init_from, model.freeze, model.backbone_config) == ("none", [], {})


@functools.cache
def parameters(backbone: str, norm: str, queries: int, classes: int) -> int:
    """Return the number of parameters of a network, built without memory for them."""
    settings = configs.Config().model
    settings = replace(settings, backbone=backbone, norm=norm, queries=queries)
    with torch.device("meta"):
        return sum(p.numel() for p in Mask2Former(settings, classes).parameters())


@pytest.mark.filterwarnings("ignore:model.norm=sync_batch needs a GPU")
@pytest.mark.parametrize("backbone", ALL)
def test_networks_have_the_published_numbers_of_parameters(backbone):
    millions, exact = PARAMETERS[backbone]
    for run in PUBLISHED:
        if run[2] != backbone:
            continue
        model, classes = resolved(*run).model, CLASSES[run[:2]]
        frozen = FROZEN.get(backbone, 0) if model.norm == "frozen_batch" else 0
        # Built with 133 classes, so that presets share networks; each class more has one row.
        built = parameters(model.backbone, model.norm, model.queries, 133) + frozen
        assert built == exact + PER_QUERY * (model.queries - 100)
        if run[:2] == ("coco", "panoptic"):
            assert round(built / 1e6) == millions
        assert classes <= 150
    own = parameters(BACKBONES[backbone], "frozen_batch", 100, 80)
    assert own + FROZEN.get(backbone, 0) == exact - PER_CLASS * (133 - 80)


def published(text: str) -> dict[str, str]:
    """Return the lines `# KEY: VALUE` of the header of a preset."""
    return dict(re.findall(r"^# (\w[\w ]*): (.*)$", text, re.MULTILINE))


def test_the_page_lists_every_preset_with_the_score_in_its_header():
    page = (small.ROOT / "docs/presets.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (\w+) \|$", page, re.MULTILINE)
    headers = []
    for name in names():
        if name != "tiny":
            lines = published(preset_path(name).read_text())
            source = lines["Source"].removesuffix(".").rpartition("model_final_")
            assert "MODEL_ZOO.md of facebookresearch/Mask2Former" in source[0]
            assert lines["Reproduced here"].startswith("no;")
            assert {"Hardware", "Weights"} <= lines.keys()
            headers.append((name, lines["Published"], source[2]))
    assert sorted(rows) == sorted(headers)
