"""What a run needs of the hosts that it trains on."""

from dataclasses import dataclass, replace

import torch

from jobs.config import Config
from jobs.worker import cpus_per_worker
from model.heads import build
from pipeline.data.batch import BYTES_PER_PIXEL
from pipeline.data.loader import PREFETCH
from pipeline.data.store import OPEN_SHARDS
from shards.files import is_url

CLASSES = 133  # of COCO; the size of a network hardly depends on their number
FLOAT_BYTES = 4
# The H200 reserves 2.1 GiB per image of 1024x1024 pixels with model.dim=256 (docs/gpu.md). A CPU
# computes in float32, and other programs need some of its memory.
BYTES_PER_PIXEL_OF_STEP = 2150
PROCESS_BYTES = 600 << 20  # of a process that has imported torch
FILES_OF_PROCESS = 200  # sockets, libraries, and records
FILES_PER_BATCH = 16  # a tensor in shared memory is an open file


@dataclass(frozen=True)
class Needs:
    """What a run needs.

    Attributes:
        workers: Number of workers.
        gpu: Whether each of them has a GPU.
        cpus: CPUs of Ray per worker.
        shm_bytes: Shared memory per worker.
        open_files: Open files per process.
        remote: The shard sets that come from URLs.
        cache_bytes: Budget of the shard cache.
        parameters: Number of parameters of the network.
        checkpoint_bytes: Size of a checkpoint.
        checkpoints: Number of checkpoints on the disk at one time.
        step_bytes: Rough estimate of the memory of a training step per worker.
        processes_bytes: Rough estimate of the memory of the host's processes per worker.
    """

    workers: int
    gpu: bool
    cpus: int
    shm_bytes: int
    open_files: int
    remote: tuple[str, ...]
    cache_bytes: int
    parameters: int
    checkpoint_bytes: int
    checkpoints: int
    step_bytes: int
    processes_bytes: int


def needs_of(config: Config, gpu: bool) -> Needs:
    """Return what a run needs.

    Args:
        config: Its config.
        gpu: Whether each worker has a GPU.
    """
    data, batch, workers = config.data, config.batch, config.scaling.workers
    assert workers is not None, "resolved by `configs.load`"
    with torch.device("meta"):
        network = build(replace(config.model, weights="none"), CLASSES)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    height, width = data.crop_size
    pixels = batch.micro * height * width
    return Needs(
        workers=workers,
        gpu=gpu,
        cpus=cpus_per_worker(config),
        shm_bytes=data.loader_workers * PREFETCH * pixels * BYTES_PER_PIXEL,
        open_files=FILES_OF_PROCESS
        + OPEN_SHARDS * (len(data.train) + 1)
        + data.loader_workers * PREFETCH * FILES_PER_BATCH,
        remote=tuple(location for location in (*data.train, data.val) if is_url(location)),
        cache_bytes=int(data.cache.gib * 2**30),
        parameters=parameters,
        checkpoint_bytes=parameters * FLOAT_BYTES * 3,  # with both moments
        checkpoints=config.checkpoint.keep + 1,  # a new one is whole before an old one leaves
        step_bytes=_step_bytes(config, parameters, pixels, config.fewest_workers, gpu),
        processes_bytes=PROCESS_BYTES * (1 + data.loader_workers),
    )


def _step_bytes(config: Config, parameters: int, pixels: int, workers: int, gpu: bool) -> int:
    """Return the bytes of parameters, gradients, moments, and activations in one worker."""
    stage = config.zero.stage
    shares = (workers if stage >= 3 else 1, workers if stage >= 2 else 1)
    moments = 2 * parameters // (workers if stage >= 1 else 1)
    states = FLOAT_BYTES * (sum(parameters // share for share in shares) + moments)
    activations = pixels * BYTES_PER_PIXEL_OF_STEP * config.model.dim // 256 * (1 if gpu else 2)
    return states + activations
