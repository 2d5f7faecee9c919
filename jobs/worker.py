"""The workers of `train`: what Ray Train starts in each of them."""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

from jobs import config as configs
from jobs.config import Config
from pipeline.run import eventlog, events
from pipeline.run.restarts import is_crash_loop
from shards.scratch import name_semaphores

TIMEOUT_S = 600


@dataclass(frozen=True)
class Job:
    """The input of a worker.

    Attributes:
        config: The run's config as plain data.
        folder: The run folder.
        threads: Number of torch threads in each worker.
        launch: Identifier of this command, which the restarts of its workers share.
        use_gpu: Whether each worker has a GPU.
    """

    config: dict[str, Any]
    folder: Path
    threads: int
    launch: str
    use_gpu: bool = False


def cpus_per_worker(config: Config) -> int:
    """Return the number of CPUs that a worker and its loader processes reserve in Ray."""
    return 1 + config.data.loader_workers


def run_workers(config: Config, job: Job, private: Path) -> str:
    """Run the workers under the Ray of this process until they end, and restart them if they fail.

    Args:
        config: The run's config.
        job: The input of the workers.
        private: A folder that only this user can open, where the workers find each other.

    Returns:
        "done", "stopped" on request, "crash loop", or "failed".
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    class NoStore(Backend):
        """Ray's backend would make the process group, with a store that listens to the network."""

        share_cuda_visible_devices = True

    class Torch(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return NoStore

    assert config.scaling.workers is not None, "resolved by `configs.load`"
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job, "private": private},
        scaling_config=ScalingConfig(
            num_workers=config.scaling.workers,
            use_gpu=job.use_gpu,
            resources_per_worker={"CPU": cpus_per_worker(config)},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.folder),
            failure_config=FailureConfig(max_failures=config.failure.max_restarts),
        ),
        torch_config=Torch(),
    )
    try:
        return trainer.fit().return_value or "failed"
    except TrainingFailedError:
        return "failed"


def _work(arguments: dict[str, Any]) -> str:
    """Train in one worker. An error that ends it is recorded, so that the driver can read it.

    Ray restarts all workers after any failure. If the last starts of this command failed at the
    same step, this function returns without training, which ends the run.
    """
    from pipeline.train import train as train_worker

    job: Job = arguments["job"]
    torch.set_num_threads(job.threads)
    name_semaphores(arguments["private"])
    if is_crash_loop(eventlog.read(job.folder), job.launch):
        return "crash loop"
    try:
        _join_group(job, arguments["private"])
        is_done = train_worker(configs.merge(job.config, []), job.folder, job.launch)
        dist.destroy_process_group()
    except Exception as error:
        rank = int(os.environ["RANK"])
        eventlog.append(job.folder, events.Failure.of(error, launch=job.launch, rank=rank))
        raise
    return "done" if is_done else "stopped"


def _join_group(job: Job, private: Path) -> None:
    """Join the process group of all workers, whose store is a file instead of a server."""
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context = get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }
    store = private / broadcast_from_rank_zero(f"store-{uuid4().hex}")
    dist.init_process_group(
        "nccl" if job.use_gpu else "gloo",
        init_method=store.as_uri(),
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=TIMEOUT_S),
    )
