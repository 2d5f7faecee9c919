"""A config is looked at before anything is started: what a worker would trip over is exit 2."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jobs.config import Config, flat, to_dict
from model.mask2former import Mask2Former
from model.weights.load import fit
from pipeline.data.augment.recipes import RECIPES
from pipeline.data.augment.resize import BACKENDS
from pipeline.data.split import BatchSplit
from pipeline.data.stages import load_stage
from pipeline.data.store import Store
from pipeline.data.stream import order_of, train_sets
from pipeline.run.restore import initial_weights
from pipeline.step.schedule import lr_multiplier
from shards.errors import UsageError
from shards.format.schema import TASKS

AT_LEAST = {
    1: (
        "trainer.steps trainer.log_every batch.size batch.micro scaling.workers "
        "data.limit data.window checkpoint.every_steps checkpoint.keep "
        "data.base data.stall_timeout_s "
        "evaluation.every_steps evaluation.images evaluation.short evaluation.long"
    ),
    0: (
        "data.loader_workers data.max_damaged failure.max_restarts schedule.warmup_steps "
        "optimizer.lr optimizer.weight_decay"
    ),
}
CHOICES = {
    "task": TASKS,
    "zero.stage": (0, 1, 2, 3),
    "data.augment": tuple(RECIPES),
    "data.resize": BACKENDS,
    "tracking.wandb.mode": ("offline", "online", "disabled"),
}
MULTIPLES_OF_32 = ("data.crop", "data.crop_width", "evaluation.size_divisor")


def check(config: Config, fresh: bool = True) -> tuple[list[Store], Store]:
    """The train sets and the val set of a config that can be trained.

    A run that is not `fresh` goes on from its checkpoint: what it was to start from may be gone.

    Raises UsageError naming the key, the value and what to do; DataError for shards that are not
    whole.
    """
    _check_values(config)
    train, val = _check_data(config)
    _check_model(config, len(val.manifest.taxonomy), fresh)
    return train, val


def _check_values(config: Config) -> None:
    if not re.fullmatch(r"\w[\w.-]*", config.name):
        raise UsageError(f"name={config.name}: use letters, digits, '.', '_' and '-'")
    values = flat(to_dict(config))
    for least, keys in AT_LEAST.items():
        for key in keys.split():
            if values[key] is not None and values[key] < least:
                raise UsageError(f"{key}={values[key]}: at least {least} is needed")
    for key, known in CHOICES.items():
        if values[key] not in known:
            raise UsageError(f"{key}={values[key]}: known are {', '.join(map(str, known))}")
    for key in MULTIPLES_OF_32:
        if values[key] is not None and (values[key] < 1 or values[key] % 32):
            raise UsageError(f"{key}={values[key]} is not a multiple of 32")
    scale = config.data.scale
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise UsageError(f"data.scale={scale}: give the least and the largest, as [0.1,2.0]")
    if not 0 < config.data.category_max_area <= 1:
        raise UsageError(
            f"data.category_max_area={config.data.category_max_area}: give a share, up to 1"
        )
    for name in config.data.stages:
        load_stage(name)
    workers = config.scaling.workers
    BatchSplit(config.batch.size, config.batch.micro, workers)
    gpus = torch.cuda.device_count()
    if config.scaling.gpu and gpus == 0:
        raise UsageError("scaling.gpu=true: this machine has no GPU that torch can use")
    if config.scaling.gpu is not False and 0 < gpus < workers:
        raise UsageError(
            f"scaling.workers={workers}: this machine has {gpus} GPUs; "
            f"give scaling.workers={gpus} or scaling.gpu=false"
        )


def _check_data(config: Config) -> tuple[list[Store], Store]:
    train = _opened("data.train", lambda: train_sets(config.data))
    val = _opened("data.val", lambda: Store(config.data.val, cache=config.data.cache))
    for key, store in (*(("data.train", store) for store in train), ("data.val", val)):
        store.check_shards()
        if len(store) == 0:
            raise UsageError(f"{key}={store.location} holds no sample")
        if config.task not in store.manifest.tasks:
            served = ", ".join(store.manifest.tasks)
            raise UsageError(f"task={config.task}: {key}={store.location} serves {served}")
    if train[0].manifest.taxonomy != val.manifest.taxonomy:
        raise UsageError(
            f"data.train={train[0].location} and data.val={val.location}: other classes; "
            "give two splits of one data set"
        )
    order_of(train, config.data, config.seed)
    return train, val


def _opened(key: str, sets: Callable[[], Any]) -> Any:
    try:
        return sets()
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error


def _check_model(config: Config, num_classes: int, fresh: bool) -> None:
    init_from = config.model.init_from
    weights = config.model.weights if init_from == "none" else "none"
    if weights != "none" and not Path(weights).is_dir():
        raise UsageError(
            f"model.weights={weights} is no folder; the preset's header has the command that "
            "fetches it, model.weights=none trains from scratch"
        )
    if config.model.compile and config.zero.stage == 3:
        raise UsageError(
            "model.compile=true with zero.stage=3: stage 3 fetches parameters layer by layer, "
            "which compiled code cannot wait for; leave one of them out"
        )
    try:
        lr_multiplier(config.schedule, config.trainer.steps)
        with torch.device("meta" if weights == "none" else "cpu"):  # weights need memory
            model = Mask2Former(config.model, num_classes)
        if init_from != "none" and fresh:
            fit(model, initial_weights(init_from, config.task))
    except ValueError as error:
        raise UsageError(str(error)) from error
