"""The largest micro-batch that fits the memory of this machine (`batch.micro=auto`).

The losses do not depend on it, so that it is found by trying, once before the workers start, and
recorded in the config of the run.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from jobs import config as configs
from jobs.check import uses_gpu
from jobs.cluster.judge import size
from jobs.cluster.ray_cluster import Node
from jobs.config import Config
from jobs.plan_trial import measure
from model.settings import show
from pipeline.run.folder import CONFIG
from shards.errors import UsageError

AUTO = "batch.micro=auto"
GPU_SHARE = 0.95  # of its memory that a step may take; evaluations have other shapes


def resolved(
    config: Config,
    folder: Path | None,
    classes: int,
    cluster: Sequence[Node] | None = None,
    *,
    has_data: bool = True,
) -> Config:
    """Return a config whose micro-batch fits this machine if it is `batch.micro=auto`.

    Args:
        config: The config.
        folder: The folder of the run, whose config may already have the result for this machine.
        classes: Number of classes.
        cluster: The nodes of the Ray cluster that trains, which are assumed to be like this
            machine; None if this machine trains.
        has_data: Whether the shard sets are here.

    Raises:
        UsageError: Not even one image fits, or this machine does not have the GPU that is needed.
    """
    if config.batch.measured_on != configs.UNMEASURED:
        return config
    gpu = uses_gpu(config, cluster)
    machine = machine_of(config, gpu)
    if folder and (folder / CONFIG).is_file():
        known = configs.load_run(folder).batch
        if known.measured_on == machine:
            return replace(config, batch=replace(known, size=config.batch.size))
    if gpu and not torch.cuda.is_available():
        what = "the largest micro-batch is measured on this machine, which has no GPU"
        raise UsageError(what, where=AUTO, fix="write batch.micro=N")
    print(f"{AUTO}: measuring which micro-batches fit", flush=True)
    micro = largest(config, classes, workers_here(config, gpu, cluster), gpu, has_data=has_data)
    print(f"{AUTO}: {micro} images fit ({machine})", flush=True)
    return replace(config, batch=replace(config.batch, micro=micro, measured_on=machine))


def largest(config: Config, classes: int, workers: int, gpu: bool, *, has_data: bool) -> int:
    """Return the size of the largest micro-batch that fits, by bisection after the largest.

    Only sizes that divide a worker's share of the batch into fewer parts are tried.

    Args:
        config: The config.
        classes: Number of classes.
        workers: Number of workers on this machine.
        gpu: Whether each of them has a GPU.
        has_data: Whether the shard sets are here.

    Raises:
        UsageError: Not even one image fits.
    """
    share = -(-config.batch.size // config.fewest_workers)
    sizes = sorted({-(-share // parts) for parts in range(1, share + 1)})
    low, high = 0, len(sizes)  # sizes[:low] fit, and sizes[high:] do not
    middle = high - 1
    while low < high:
        tried = replace(config, batch=replace(config.batch, micro=sizes[middle]))
        taken = measure(tried, classes, workers, gpu, has_data=has_data, seconds=0)
        fits = taken is not None and (not gpu or taken.memory_bytes < GPU_SHARE * _gpu_bytes())
        low, high = (middle + 1, high) if fits else (low, middle)
        middle = (low + high) // 2
    if low == 0:
        raise UsageError(
            "not even a micro-batch of one image fits the memory of this machine",
            where=AUTO,
            fix="lower data.crop or scaling.workers, or write model.checkpoint_activations=true",
        )
    return sizes[low - 1]


def workers_here(config: Config, gpu: bool, cluster: Sequence[Node] | None) -> int:
    """Return the number of workers that this machine would have."""
    workers = config.scaling.workers or 1
    if gpu:
        return min(workers, torch.cuda.device_count())
    return -(-workers // len(cluster)) if cluster else workers


def machine_of(config: Config, gpu: bool) -> str:
    """Describe this machine, and the settings that the memory of a step depends on."""
    device = f"{len(os.sched_getaffinity(0))} cores, {size(psutil.virtual_memory().total)}"
    if gpu and torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name(0)}, {size(_gpu_bytes())}"
    values = {
        "scaling.workers": config.scaling.workers,
        "zero.stage": config.zero.stage,
        "zero.offload": config.zero.offload,
        "model.checkpoint_activations": config.model.checkpoint_activations,
        "model.compile": config.model.compile,
        "data.loader_workers": config.data.loader_workers,
    }
    return "; ".join([device, *(f"{key}={show(value)}" for key, value in values.items())])


def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory
