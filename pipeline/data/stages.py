"""The stages that one sample passes through: decode, the functions of the user, and augment."""

import re
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from pipeline.data.augment.recipes import AugmentSettings, augment
from pipeline.data.batch import Truth, truth_of, without_empty
from pipeline.data.keyed import keyed_generator
from pipeline.data.settings import STAGE_NAME
from shards.errors import DataError, Problem, UsageError
from shards.format.images import image_of
from shards.format.schema import Sample

Stage = Callable[[dict[str, Any]], dict[str, Any]]
IDENTITY = ("key", "position", "epoch")  # the fields that no stage may change


def decode_stage(sample: dict[str, Any], task: str, things: Sequence[bool]) -> dict[str, Any]:
    """Decode the field `stored`, a `Sample`.

    Args:
        sample: The fields of IDENTITY, and `stored`.
        task: One of TASKS.
        things: For each class, whether it is a thing.

    Returns:
        The sample with `image`, `uint8 [H, W, 3]`, and `truth` in place of `stored`.

    Raises:
        DataError: The image does not decode or has another size than its truth.
    """
    stored: Sample = sample.pop("stored")
    return sample | {"image": image_of(stored), "truth": truth_of(stored, task, things)}


@lru_cache
def load_stage(name: str) -> Stage:
    """Import a function by its name `package.module:function`.

    Raises:
        UsageError: The name does not have this form, or the function cannot be imported.
    """
    where = f"data.stages={name}"
    if not re.fullmatch(STAGE_NAME, name):
        raise UsageError("the name has the wrong form", where=where, fix="write module:function")
    module, function = name.split(":")
    try:
        stage: Stage | None = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            str(error),
            where=where,
            fix="name the folder that holds the module: PYTHONPATH=FOLDER ./launch.sh ...",
        ) from error
    except Exception as error:
        raise UsageError(_one_line(error), where=where, fix="correct the module") from error
    if not callable(stage):
        raise UsageError(
            f"{module} has no function {function}", where=where, fix="correct the name"
        )
    return stage


def user_stage(sample: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """Apply a function of the user to a decoded sample, before augmentation.

    The function gets `key`, `position`, `epoch`, `image` (`uint8 [H, W, 3]`), `truth` (a `Truth`),
    and `random`, a numpy generator keyed by (seed, epoch, key, name). Its draws are therefore the
    same on any rank and in `replay`. It returns the sample with a changed image or truth.

    Args:
        sample: The decoded sample.
        name: The function's name, `package.module:function`.
        seed: The seed of the run.

    Raises:
        UsageError: The function fails, returns anything except one sample, or changes a field of
            IDENTITY.
        DataError: The function raises a DataError; the sample is then replaced as damaged.
    """
    identity = {field: sample[field] for field in IDENTITY}
    random = keyed_generator(seed, sample["epoch"], sample["key"], name)
    try:
        changed = load_stage(name)(sample | {"random": random})
    except (DataError, UsageError):
        raise
    except Exception as error:
        problem = Problem(_one_line(error), fix="correct the stage")
        raise _stage_error(name, sample["key"], problem) from error
    if problem := _problem(changed, identity):
        raise _stage_error(name, sample["key"], problem)
    return sample | {field: value for field, value in changed.items() if field != "random"}


def augment_stage(
    sample: dict[str, Any], settings: AugmentSettings, task: str, seed: int
) -> dict[str, Any]:
    """Augment a decoded sample with random numbers keyed by (seed, epoch, key).

    Returns:
        The sample with `image` as `uint8 [3, *crop]`, its `truth`, and `size`, the height and
        width that are not padding.
    """
    truth = sample["truth"]
    random = keyed_generator(seed, sample["epoch"], sample["key"], "augment")
    image, maps, size = augment(sample["image"], truth, settings, random, task)
    truth = truth._replace(maps=maps)
    if not settings.keeps_empty(task):
        truth = without_empty(truth)
    return sample | {"image": image, "truth": truth, "size": size}


def _stage_error(name: str, key: str, problem: Problem) -> UsageError:
    return UsageError(f"sample {key}: {problem.what}", where=f"data.stages={name}", fix=problem.fix)


def _problem(sample: Any, identity: dict[str, Any]) -> Problem | None:
    """Return what is wrong with the value that a stage returned, or None."""
    if not isinstance(sample, dict):
        kind = type(sample).__name__
        return Problem(f"the stage returned {kind}, not a dict", fix="return the changed sample")
    changed = [field for field, value in identity.items() if sample.get(field) != value]
    if changed:
        fields = ", ".join(identity)
        return Problem(f"the stage changed {changed[0]}", fix=f"leave {fields} as they are")
    image, truth = sample.get("image"), sample.get("truth")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        return Problem("the image is not uint8 [H, W, 3]", fix="convert it in the stage")
    if not isinstance(truth, Truth) or truth.maps.dtype not in (np.uint8, np.uint16):
        return Problem(
            "the truth is not a Truth with maps of uint8 or uint16", fix="use its _replace"
        )
    if truth.maps.shape[1:] != image.shape[:2]:
        return Problem(
            f"the image has the size {image.shape[:2]}, but its maps have {truth.maps.shape[1:]}",
            fix="give both the same size",
        )
    if len({len(column) for column in truth[1:]}) != 1:
        return Problem(
            "the numbers of categories, layers, and values in the truth differ",
            fix="give each entry one category, one layer, and one value",
        )
    return None


def _one_line(error: Exception) -> str:
    """Return an error of the user's code in one line, with the file and line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({frame.filename}:{frame.lineno})"
