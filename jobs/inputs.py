"""What a config reads: whether it exists, and whether training can learn from it.

`check_exist` runs before torch and Ray are imported, which takes seconds.
"""

import math
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.config import Config
from jobs.preset import names, preset_path, read_preset
from model.network_settings import WEIGHT_FILES
from pipeline.data.settings import DataSettings
from pipeline.data.store import Store
from shards.errors import M2FError, UsageError
from shards.files import is_url
from shards.format.manifest import Manifest

FROZEN = "frozen_batch"
FROM_SCRATCH = "model.norm=group optimizer.backbone_lr_multiplier=1"  # as in the preset `tiny`
# The command in the header of a preset that fetches its weights.
FETCH = re.compile(
    r"^#\s+(?:\.venv/bin/)?(?P<command>hf download \S+ --local-dir|curl --create-dirs -Lo) "
    r"(?P<target>\S+)(?P<source>.*)$",
    re.MULTILINE,
)
LOOKED_AT = 32  # samples of a set, at equal distances
SMALL_PX = 5  # side of an object, as the square root of its area
ENOUGH_PX = 10  # side that half of the objects have at least with the proposed settings
SHARE = 0.3  # of small objects above which a warning is due; COCO has 41 % below 32 pixels


def check_exist(config: Config) -> None:
    """Check that the local shard sets and the pretrained weights exist.

    Raises:
        UsageError: One is missing. The error names the key and the fix.
        DataError: A manifest is damaged.
    """
    for key, locations in (("data.train", config.data.train), ("data.val", [config.data.val])):
        for location in locations:
            if not is_url(location):
                try:
                    Manifest.load(Path(location))
                except UsageError as error:
                    raise error.at(f"{key}={error.problem.where or location}") from error
    model = config.model
    if model.init_from != "none" or model.weights == "none":
        return
    weights, kind = Path(model.weights), "file" if model.weights_file != "none" else "folder"
    held = [weights] if kind == "file" else weights.glob("*")
    if not any(path.suffix in WEIGHT_FILES and path.is_file() for path in held):
        raise UsageError(
            "the folder holds no weights" if weights.is_dir() else f"the {kind} does not exist",
            where=f"model.weights={model.weights}",
            fix=f"{_fetch(config)}; to train from scratch instead, write model.weights=none"
            + f" {FROM_SCRATCH}" * _is_frozen(config),
        )


def _fetch(config: Config) -> str:
    """Return the sentence that says where the weights of the backbone come from."""
    backbone, wanted = config.model.backbone, Path(config.model.weights)
    commands = {
        Path(command["target"]): command
        for name in names()
        if (command := FETCH.search(preset_path(name).read_text()))
        and read_preset(name)["model"]["backbone"] == backbone
    }
    if not commands:
        return f"give a folder of weights of {backbone} in the format of transformers"
    target = next((t for t in commands if t.name == wanted.name), next(iter(commands)))
    command = commands[target]
    program, _, options = command["command"].partition(" ")
    if program == "hf":
        path = Path(sys.prefix, "bin", program)
        program = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if target.suffix == wanted.suffix:
        return f"fetch it: {program} {options} {shlex.quote(str(wanted))}{command['source']}"
    fetch = f"{program} {options} {target}{command['source']}"
    return f"fetch other weights: {fetch}, and write model.weights={target}"


def warn_of_other_weights(preset: str, config: Config) -> None:
    """Warn if a preset names a file of weights, and the run starts from another one."""
    named = Path(read_preset(preset).get("model", {}).get("weights", "none"))
    own = config.model.weights
    is_other = config.model.init_from == "none" and own != "none" and Path(own).name != named.name
    if named.suffix in WEIGHT_FILES and is_other:
        warnings.warn(
            f"model.weights={own} is not {named.name}, from which the run started whose scores "
            f"{preset} quotes; weights of another recipe, such as microsoft/resnet-50, lead to "
            "other scores",
            stacklevel=2,
        )


def _is_frozen(config: Config) -> bool:
    return config.model.backbone.startswith("resnet") and config.model.norm == FROZEN


def warn_if_unlearnable(config: Config, train: Sequence[Store]) -> None:
    """Warn if the network cannot learn with these settings, or cannot learn most objects."""
    if config.model.weights == config.model.init_from == "none" and _is_frozen(config):
        warnings.warn(
            f"model.norm={FROZEN} does not train without pretrained weights; to train from "
            f"scratch, add {FROM_SCRATCH}",
            stacklevel=2,
        )
    sides = [side for store in train for side in _object_sides(store, config.data)]
    share = float(np.mean(np.array(sides) < SMALL_PX)) if sides else 0.0
    if share <= SHARE:
        return
    growth = ENOUGH_PX / max(float(np.median(sides)), 0.1)
    values = {"data.base": config.data.base} if config.data.augment == "shortest_edge" else {}
    values["data.crop"] = config.data.crop
    if config.data.crop_width:
        values["data.crop_width"] = config.data.crop_width
    values |= {f"evaluation.{side}": getattr(config.evaluation, side) for side in ("short", "long")}
    larger = [f"{key}={32 * math.ceil(growth * value / 32)}" for key, value in values.items()]
    warnings.warn(
        f"{share:.0%} of the objects are smaller than {SMALL_PX}x{SMALL_PX} pixels after the "
        f"images are resized for data.crop={config.data.crop}, so the network will not learn them; "
        f"write {' '.join(larger)}, or use a preset for photographs such as coco_panoptic_r50",
        stacklevel=2,
    )


def _object_sides(store: Store, settings: DataSettings) -> list[float]:
    """Return the sides of objects in training, in pixels, for some samples of a local set."""
    if is_url(store.location):
        return []  # reading samples would download their shards
    things = [bool(category.isthing) for category in store.manifest.taxonomy.categories]
    positions = np.unique(np.linspace(0, len(store) - 1, min(len(store), LOOKED_AT)).astype(int))
    sides = []
    for position in positions:
        try:
            sample = store.load(int(position))
        except M2FError:  # training reports damaged samples
            continue
        factor = _mean_factor(sample.height, sample.width, settings)
        objects = sample.instances_or_things(things)
        sides += [math.sqrt(entry.area) * factor for entry in objects if not entry.iscrowd]
    return sides


def _mean_factor(height: int, width: int, settings: DataSettings) -> float:
    """Return the mean factor by which augmentation resizes an image."""
    if settings.augment == "shortest_edge":  # half to twice the base: see pipeline/data/augment
        return 1.25 * settings.base / min(height, width)
    fitted = min(settings.crop_size[0] / height, settings.crop_size[1] / width)
    return fitted * (sum(settings.scale) / 2 if settings.augment == "lsj" else 1)
