"""The `plan` command: what a run would take, before it is started."""

import copy
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from jobs import config as configs
from jobs.check import check_data, uses_gpu
from jobs.cluster.needs import CLASSES
from jobs.config import Config
from jobs.plan_micro import resolved
from jobs.plan_network import Sizes, Step, network_of, step_parts
from jobs.plan_rates import rate_of
from jobs.plan_text import table
from jobs.plan_trial import Measured, measure
from pipeline.data.split import split_of
from pipeline.data.store import Store
from pipeline.data.stream import order_of
from pipeline.settings import ZeroSettings
from shards.errors import UsageError
from shards.files import is_url
from shards.format.manifest import MANIFEST


def plan(preset: str, overrides: list[str]) -> dict[str, Any]:
    """Print what a run would take on this machine, and take a step to measure it if possible.

    Args:
        preset: Name of a preset, or path of a YAML file.
        overrides: Settings as `key=value`; data.train and data.val may be missing.

    Returns:
        What was printed, as JSON types.

    Raises:
        UsageError: The config is wrong, or does not fit the data.
        DataError: A shard set is damaged.
        Failed: A measured step failed.
    """
    config = configs.load(preset, overrides, needs_data=False)
    train = opened(config)
    if can_measure(config):
        classes = len(train[0].manifest.taxonomy) if train else CLASSES
        config = resolved(config, None, classes, has_data=train is not None)
    found = static(preset, config, train)
    found |= measured(config, found["network"]["classes"], has_data=train is not None)
    print(table(found))
    return found


def dry_run(preset: str, overrides: list[str]) -> dict[str, Any]:
    """Print what can be said of a run without taking a step. Nothing is written.

    Args:
        preset: Name of a preset, or path of a YAML file.
        overrides: Settings as `key=value`; data.train and data.val may be missing.

    Returns:
        What was printed, as JSON types.

    Raises:
        UsageError: The config is wrong, or does not fit the data.
        DataError: A shard set is damaged.
    """
    config = configs.load(preset, overrides, needs_data=False)
    found = static(preset, config, opened(config))
    print(table(found))
    return found


def opened(config: Config) -> list[Store] | None:
    """Return the training sets of a config; None if a set is missing, or is one at a URL."""
    locations = [*config.data.train, config.data.val]
    if not config.data.train or not all(is_here(location) for location in locations):
        return None
    return check_data(config)[0]


def is_here(location: str) -> bool:
    """Return whether a shard set is in a folder of this machine."""
    return bool(location) and not is_url(location) and (Path(location) / MANIFEST).is_file()


def static(preset: str, config: Config, train: list[Store] | None) -> dict[str, Any]:
    """Return what follows from a config alone, as JSON types.

    Args:
        preset: The preset that the config was loaded from.
        config: The config.
        train: The training sets, if they are here.

    Raises:
        UsageError: The network cannot be built.
    """
    classes = len(train[0].manifest.taxonomy) if train else CLASSES
    try:
        sizes = Sizes.of(network_of(config, classes))
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    workers, gpu = config.scaling.workers or 1, uses_gpu(config, None)
    split, rate = split_of(config, workers), rate_of(preset, config)
    return {
        "preset": preset,
        "name": config.name,
        "task": config.task,
        "machine": machine(),
        "network": {
            "parameters": sizes.parameters,
            "trainable": sizes.trainable,
            "frozen": sizes.frozen,
            "classes": classes,
        },
        "batch": {
            "size": split.global_batch,
            "workers": workers,
            "gpu": gpu,
            "micro_batches": split.sizes,
            "crop": config.data.crop_size,
            "is_auto": config.batch.measured_on == configs.UNMEASURED,
        },
        "steps": config.trainer.steps,
        "data": data_of(config, train, workers),
        "checkpoint": checkpoints_of(config, sizes),
        "learning_rate": rate.to_json(),
    }


def machine() -> dict[str, Any]:
    """Return the cores, the memory, and the GPUs of this machine."""
    count = torch.cuda.device_count()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": count,
        "gpu": torch.cuda.get_device_name(0) if count else None,
    }


def data_of(config: Config, train: list[Store] | None, workers: int) -> dict[str, Any]:
    """Return the images, the shards, and the first sample of the order; why not, without data."""
    if train is None:
        missing = [location for location in config.data.train if not is_here(location)]
        if not config.data.train or not config.data.val:
            reason = "data.train and data.val are not both set"
        else:
            reason = f"no shard set of this machine is at {(missing or [config.data.val])[0]}"
        return {"missing": reason}
    order = order_of(train, config.data, config.seed)
    first = order.at(0)
    images, shards = sum(map(len, train)), sum(len(store.manifest.shards) for store in train)
    return {
        "images": images,
        "shards": shards,
        "shards_per_worker": shards / workers,
        "epochs": config.trainer.steps * config.batch.size / images,
        "first_sample": train[first.set].index.key[first.sample],
    }


def checkpoints_of(config: Config, sizes: Sizes) -> dict[str, Any]:
    """Return the size of a checkpoint, the number that is kept, and the space for them.

    Beside the newest ones, the best one is kept, and a new one is whole before an old one leaves.
    """
    one, count = (
        sizes.checkpoint_bytes(config.optimizer.ema is not None),
        config.checkpoint.keep + 2,
    )
    free = None
    if not is_url(config.runs):
        folder = next(path for path in (Path(config.runs), *Path(config.runs).parents)
                      if path.exists())  # fmt: skip
        free = shutil.disk_usage(folder).free
    return {
        "bytes": one,
        "count": count,
        "total_bytes": one * count,
        "free_bytes": free,
        "runs": config.runs,
    }


def measured(config: Config, classes: int, *, has_data: bool) -> dict[str, Any]:
    """Return the memory and the time of a step, and what other settings would change.

    Without the GPUs that the config asks for, the memory is an estimate, and no time is known.
    """
    workers, gpu = config.scaling.workers or 1, uses_gpu(config, None)
    sizes = Sizes.of(network_of(config, classes))
    parts = step_parts(config, sizes, classes, workers, gpu=gpu)
    found: dict[str, Any] = {"changes": changes(config, sizes, classes, workers, parts, gpu=gpu)}
    total = parts.total
    estimate = {"bytes": total, "estimated_bytes": total, "is_measured": False, "fits": None}
    if not can_measure(config):
        wanted = f"{workers} GPU{'s' * (workers > 1)}"
        reason = f"the config wants {wanted}, and this machine has {torch.cuda.device_count()}"
        return found | {"memory": estimate, "speed": {"missing": reason}}
    taken = measure(config, classes, workers, gpu, has_data=has_data)
    if taken is None:
        reason = "a step does not fit the memory of this machine"
        return found | {"memory": estimate | {"fits": False}, "speed": {"missing": reason}}
    memory = {"bytes": taken.memory_bytes, "is_measured": True, "fits": True}
    return found | {"memory": estimate | memory, "speed": speed_of(config, taken)}


def can_measure(config: Config) -> bool:
    """Return whether this machine has the GPUs that a config asks for."""
    return not uses_gpu(config, None) or torch.cuda.device_count() >= (config.scaling.workers or 1)


def speed_of(config: Config, taken: Measured) -> dict[str, Any]:
    """Return the figures of a measured step, as JSON types."""
    shares = {
        "data": taken.data_s / taken.step_s,
        "network": taken.network_s / taken.step_s,
        "update": taken.update_s / taken.step_s,
    }
    return {
        "step_s": taken.step_s,
        "images_per_s": config.batch.size / taken.step_s,
        "eta_s": config.trainer.steps * taken.step_s,
        "shares": shares,
        "limit": max(shares, key=lambda name: shares[name]),
        "is_synthetic": taken.is_synthetic,
    }


def changes(
    config: Config, sizes: Sizes, classes: int, workers: int, parts: Step, *, gpu: bool
) -> dict[str, int]:
    """Return by how many bytes other settings would change the memory of a worker (estimates)."""
    others = {}
    if not config.model.checkpoint_activations:
        others["model.checkpoint_activations=true"] = {
            "model": replace(config.model, checkpoint_activations=True)
        }
    if workers > 1:
        for stage in sorted({0, 1, 2, 3} - {config.zero.stage}):
            others[f"zero.stage={stage}"] = {"zero": ZeroSettings(stage)}
    largest = -(-config.batch.size // workers)
    for micro in sorted({max(1, config.batch.micro // 2), min(largest, 2 * config.batch.micro)}):
        if micro != config.batch.micro:
            others[f"batch.micro={micro}"] = {"batch": replace(config.batch, micro=micro)}
    return {
        name: step_parts(replaced(config, change), sizes, classes, workers, gpu=gpu).total
        - parts.total
        for name, change in others.items()
    }


def replaced(config: Config, sections: dict[str, Any]) -> Config:
    """Return a config with other sections, without the checks between sections."""
    other = copy.copy(config)
    for name, section in sections.items():
        setattr(other, name, section)
    return other
