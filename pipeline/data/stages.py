"""What happens to one sample on its way into a batch: decode, the user's own stages, augment."""

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
from shards.errors import DataError, UsageError
from shards.format.images import image_of
from shards.format.schema import Sample

Stage = Callable[[dict[str, Any]], dict[str, Any]]
IDENTITY = ("key", "position", "epoch")  # of a sample; no stage may change it


def decode_stage(sample: dict[str, Any], task: str, things: Sequence[bool]) -> dict[str, Any]:
    """Decode the field `stored`, a `Sample`.

    Args:
        sample: The fields of IDENTITY, and `stored`.
        task: One of TASKS.
        things: For each class, whether it is a thing.

    Returns:
        The sample with `image`, uint8 `[H, W, 3]`, and `truth` in place of `stored`.

    Raises:
        DataError: The image does not decode or has another size than its truth.
    """
    stored: Sample = sample.pop("stored")
    return sample | {"image": image_of(stored), "truth": truth_of(stored, task, things)}


@lru_cache
def load_stage(name: str) -> Stage:
    """The function called `package.module:function`. Raises UsageError where there is none."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise UsageError(f"data.stages: {name!r} is not package.module:function")
    module, function = name.split(":")
    try:
        stage = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"data.stages={name}: {error}; name the folder it is in: PYTHONPATH=FOLDER ./launch.sh"
        ) from error
    except Exception as error:
        raise UsageError(f"data.stages={name}: {_where(error)}") from error
    if not callable(stage):
        raise UsageError(f"data.stages={name}: {module} has no function {function}")
    return stage


def user_stage(sample: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """One decoded sample through a function of the user's, between decoding and augmentation.

    The function is given `key`, `position`, `epoch`, `image` u8 [H,W,3], `truth` (a `Truth`) and
    `random`, a numpy generator keyed by (seed, epoch, key, name): what it draws is drawn again
    on any rank and in `replay`. It returns the sample with image or truth changed. Raises
    UsageError if it fails, returns anything but that one sample, or changes its identity.
    """
    identity = {field: sample[field] for field in IDENTITY}
    random = keyed_generator(seed, sample["epoch"], sample["key"], name)
    try:
        changed = load_stage(name)(sample | {"random": random})
    except (DataError, UsageError):
        raise
    except Exception as error:
        raise UsageError(f"data.stages={name}: sample {sample['key']}: {_where(error)}") from error
    if problem := _problem(changed, identity):
        raise UsageError(f"data.stages={name}: sample {sample['key']}: {problem}")
    return sample | {field: value for field, value in changed.items() if field != "random"}


def augment_stage(
    sample: dict[str, Any], settings: AugmentSettings, task: str, seed: int
) -> dict[str, Any]:
    """image u8 [3,*crop] and its truth, drawn from (seed, epoch, key)."""
    truth = sample["truth"]
    random = keyed_generator(seed, sample["epoch"], sample["key"], "augment")
    image, maps, size = augment(sample["image"], truth, settings, random)
    truth = truth._replace(maps=maps)
    if not settings.keeps_empty(task):
        truth = without_empty(truth)
    return sample | {"image": image, "truth": truth, "size": size}


def _problem(sample: Any, identity: dict[str, Any]) -> str | None:
    """What is wrong with what a user's stage returned."""
    if not isinstance(sample, dict):
        return f"{type(sample).__name__} came back; return the one sample, changed"
    changed = [field for field, value in identity.items() if sample.get(field) != value]
    if changed:
        return f"{changed[0]} has changed; leave {', '.join(identity)} as they are"
    image, truth = sample.get("image"), sample.get("truth")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        return "image is not uint8 [H, W, 3]"
    if not isinstance(truth, Truth) or truth.maps.dtype not in (np.uint8, np.uint16):
        return "truth is not a Truth with maps of uint8 or uint16"
    if truth.maps.shape[1:] != image.shape[:2]:
        return f"the image is {image.shape[:2]}, its maps are {truth.maps.shape[1:]}"
    if len({len(column) for column in truth[1:]}) != 1:
        return "truth has not as many categories as layers and values"
    return None


def _where(error: Exception) -> str:
    """An error of the user's code in one line, with the place that raised it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({place.filename}:{place.lineno})"
