"""Choose the settings of a run from its data and this machine, and give a reason for each."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from model.network_settings import BACKBONE_NAMES
from shards.errors import UsageError
from shards.inspect import Overview

PRETRAINED = Path(__file__).with_name("pretrained.yaml")  # the preset of pretrained backbones
OBJECT_SIDE = 12  # pixels of a small object, below which a mask at a quarter of the size is lost
SMALLEST, DIVISOR = 96, 32  # pixels of an image, and of what crops are a multiple of
LARGEST = {"cpu": 448, "cuda": 1024}  # pixels of the longer side of an image
LARGEST_CROP = {"cpu": 160, "cuda": 512}
ENLARGED = 2  # how much an image may be enlarged
SCORED = 200  # validation images
FAMILIES = ("resnet", "swin", "swinv2", "convnext", "dinov3_vit")  # that name no size
START_S = 40  # of Ray and of the workers, on two busy cores
RESERVE = 0.85  # the share of the time that steps are planned for
FEWEST_STEPS, MOST_STEPS = 20, 20_000


class Facts(NamedTuple):
    """What the choices depend on.

    Attributes:
        tasks: The tasks that the data serves.
        train: Number of training images.
        val: Number of validation images.
        short: Median length of the shorter side in pixels.
        long: Median length of the longer side.
        object_side: Root of the area that three quarters of the objects exceed; None without any.
        objects: The number of objects that 95 % of the images do not exceed.
    """

    tasks: tuple[str, ...]
    train: int
    val: int
    short: float
    long: float
    object_side: float | None
    objects: int

    @classmethod
    def of(cls, train: Overview, val: int) -> "Facts":
        """Return the facts of a training set, and of a validation set of `val` images."""
        sides = np.sort(train.sizes, axis=1)
        tally = train.tally
        areas = tally.areas[tally.areas > 0]
        return cls(
            tasks=train.manifest.tasks,
            train=len(train.index),
            val=val,
            short=float(np.median(sides[:, 0])),
            long=float(np.median(sides[:, 1])),
            object_side=float(np.sqrt(np.quantile(areas, 0.25))) if areas.size else None,
            objects=int(np.quantile(tally.objects, 0.95)) if tally.objects.size else 0,
        )


class Machine(NamedTuple):
    """What the run is trained on."""

    device: str  # "cpu" or "cuda"
    count: int  # of cores or of GPUs

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine."""
        if torch.cuda.is_available():
            return cls("cuda", torch.cuda.device_count())
        return cls("cpu", len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Choice:
    """Settings that belong together, and why they have their values."""

    settings: dict[str, Any]
    reason: str

    @property
    def overrides(self) -> list[str]:
        """The settings as `key=value`."""
        return [f"{key}={_written(value)}" for key, value in self.settings.items()]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def choose(facts: Facts, machine: Machine) -> list[Choice]:
    """Return the choices that depend on the data and the machine, except for the steps."""
    return [
        _task(facts),
        *_sizes(facts, machine),
        _queries(facts, machine),
        _batch(machine),
        _scores(facts),
    ]


def _task(facts: Facts) -> Choice:
    task = next(one for one in ("panoptic", "instance", "semantic") if one in facts.tasks)
    why = {
        "panoptic": "every pixel has a class, and things are separate objects",
        "instance": "the labels are objects, and other pixels have no class",
        "semantic": "the labels are classes of pixels, without separate objects",
    }
    return Choice({"task": task}, why[task])


def _sizes(facts: Facts, machine: Machine) -> list[Choice]:
    """Return the size of the images, and of the crops that are trained on."""
    most = min(LARGEST[machine.device], ENLARGED * facts.long)
    wanted, why = 2 * SMALLEST, "there are no objects, so the whole image is seen at a small size"
    if facts.object_side:
        wanted = facts.long * OBJECT_SIDE / facts.object_side
        why = (
            f"a quarter of the objects are smaller than {facts.object_side:.0f} pixels (root of "
            f"the area), and at this size they have {{side:.0f}}"
        )
    long = round(min(max(wanted, SMALLEST), max(most, SMALLEST)))
    factor = long / facts.long
    side = (facts.object_side or 0) * factor
    if side and side < OBJECT_SIDE - 1:
        why += f", which is little, but more than {long} pixels are too slow here"
    crop = min(math.ceil(long / DIVISOR) * DIVISOR, LARGEST_CROP[machine.device])
    middle = long / crop
    view = "the whole image" if middle <= 1.01 else f"a window of 1/{middle:.1f} of its side"
    return [
        Choice(
            {
                "evaluation.short": max(1, round(facts.short * factor)),
                "evaluation.long": round(1.25 * long),
            },
            f"images of {facts.long:.0f} pixels (longer side) are seen at {long}: "
            + why.format(side=side),
        ),
        Choice(
            {"data.crop": crop, "data.scale": [round(0.8 * middle, 2), round(1.25 * middle, 2)]},
            f"a step sees {view}, at 0.8 to 1.25 times that size; larger crops are slower",
        ),
    ]


def _queries(facts: Facts, machine: Machine) -> Choice:
    most = {"cpu": 100, "cuda": 200}[machine.device]
    queries = min(most, max(16, math.ceil(1.25 * facts.objects / 4) * 4))
    why = f"95 % of the images have at most {facts.objects} objects, each of which takes a query"
    if queries < facts.objects:
        why += f"; more than {most} are too slow here, so some objects will be missed"
    return Choice({"model.queries": queries}, why)


def _batch(machine: Machine) -> Choice:
    if machine.device == "cuda":
        return Choice(
            {
                "batch.size": 16 * machine.count,
                "batch.micro": 16,
                "data.loader_workers": 4,
                "scaling.workers": machine.count,
                "scaling.gpu": "true",
            },
            f"one worker for each of the {machine.count} GPUs, with 16 images each",
        )
    workers = min(4, machine.count)
    return Choice(
        {"batch.size": 8, "batch.micro": 8 // workers, "scaling.workers": workers},
        f"{workers} workers share 8 images on {machine.count} cores",
    )


def _scores(facts: Facts) -> Choice:
    if facts.val <= SCORED:
        return Choice({}, f"all {facts.val} validation images are scored")
    why = f"{SCORED} of the {facts.val} validation images are scored, because all take long"
    return Choice({"evaluation.images": SCORED}, why)


def choose_steps(facts: Facts, choices: list[Choice], step_s: float, minutes: float) -> Choice:
    """Return the choice of the number of steps.

    Args:
        facts: The data.
        choices: The other choices.
        step_s: The measured seconds of a step.
        minutes: The time that the run may take.
    """
    settings = {key: value for choice in choices for key, value in choice.settings.items()}
    per_pixel = step_s / settings["batch.size"] / settings["data.crop"] ** 2
    pixels = settings["evaluation.short"] * settings["evaluation.long"]
    scoring_s = 2 * min(facts.val, SCORED) * pixels * per_pixel / 2  # a forward pass, twice
    room = max(0, minutes * 60 * RESERVE - START_S - scoring_s) / step_s
    steps = int(min(max(room, FEWEST_STEPS), MOST_STEPS))
    steps -= steps % 10
    epochs = steps * settings["batch.size"] / facts.train
    return Choice(
        {
            "trainer.steps": steps,
            "schedule.warmup_steps": max(1, min(50, steps // 20)),
            "evaluation.every_steps": max(1, math.ceil(steps / 2)),
        },
        f"a step takes {step_s:.2g} s (measured), and there are {minutes:g} minutes; each image "
        f"is seen {epochs:.3g} times",
    )


def choose_weights(weights: str | None) -> Choice:
    """Return the choice of the weights that the backbone starts from.

    Args:
        weights: A file or folder, None for random weights.

    Raises:
        UsageError: The name does not tell which backbone it is, or nothing is there.
    """
    if weights is None:
        return Choice({"optimizer.lr": 1e-3}, "all weights are random, which takes large steps")
    path = Path(weights)
    if not path.exists():
        raise UsageError(f"{path} does not exist", where="--weights", fix="give a file or folder")
    name = _letters(path.resolve().name)
    fitting = [one for one in BACKBONE_NAMES if one not in FAMILIES and _letters(one) in name]
    if not fitting:
        known = ", ".join(one for one in BACKBONE_NAMES if one not in FAMILIES)
        what = f"{path.name} does not tell which backbone it is"
        raise UsageError(what, where="--weights", fix=f"name it after one of {known}")
    backbone = max(fitting, key=len)
    return Choice(
        {"model.backbone": backbone, "model.weights": str(path.absolute())},
        f"the backbone starts from {path.name}, whose name says that it is {backbone}; pretrained "
        "features learn from fewer images, at a third of the rate",
    )


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
