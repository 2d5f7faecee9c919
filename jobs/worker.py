"""The workers of `train`: what Ray Train starts in each of them."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from jobs import config as configs
from jobs.cluster.ray_cluster import Variables, interface_of
from jobs.config import Config
from pipeline.run import eventlog, events
from pipeline.run.restarts import is_crash_loop
from pipeline.run.working_copy import WorkingCopy
from pipeline.step import cpu_helper
from shards.errors import Failed
from shards.scratch import name_semaphores, private_folder


@dataclass(frozen=True)
class Job:
    """The input of a worker.

    Attributes:
        config: The run's config as plain data.
        folder: The run folder.
        launch: Identifier of this command, which the restarts of its workers share.
        use_gpu: Whether each worker has a GPU.
        is_spread: Whether the workers are on the nodes of a cluster, instead of this machine.
        variables: Environment variables that they need there.
        url: The run on storage; None if it is in `folder`, which all workers share.
        owner: The owner in the run's lease.
    """

    config: dict[str, Any]
    folder: Path
    launch: str
    use_gpu: bool = False
    is_spread: bool = False
    variables: Variables = field(default_factory=Variables)
    url: str | None = None
    owner: str = ""

    @property
    def copy(self) -> WorkingCopy | None:
        """What stands for a run on storage on this host."""
        return WorkingCopy(self.url, self.owner) if self.url else None


def cpus_per_worker(config: Config) -> int:
    """Return the number of CPUs that a worker and its loader processes reserve in Ray."""
    return 1 + config.data.loader_workers


def threads_per_worker(threads: int | None, workers: int) -> int:
    """Return the number of torch threads in each worker of a node.

    Args:
        threads: The setting; None shares the cores of this node.
        workers: Number of workers on this node.
    """
    return threads or max(1, len(os.sched_getaffinity(0)) // workers)


def run_workers(config: Config, job: Job, private: Path) -> str:
    """Run the workers under the Ray of this process until they end, and restart them if they fail.

    Args:
        config: The run's config.
        job: The input of the workers.
        private: A folder that only this user can open, where the workers of this machine find each
            other.

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
            placement_strategy=_placement(config, job.use_gpu),
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


def _placement(config: Config, use_gpu: bool) -> str:
    """Return Ray's name of how the workers are placed on the nodes."""
    return (config.scaling.placement or ("pack" if use_gpu else "spread")).upper()


def _work(arguments: dict[str, Any]) -> str:
    """Train in one worker. An error that ends it is recorded, so that the driver can read it.

    Ray restarts all workers after any failure. If the last starts of this command failed at the
    same step, this function returns without training, which ends the run.
    """
    from ray.train import get_context

    from pipeline.train import train as train_worker

    job: Job = arguments["job"]
    job.variables.set()
    config = configs.merge(job.config, [])
    here = get_context().get_local_world_size()
    torch.set_num_threads(threads_per_worker(config.scaling.threads, here))
    with _private_folder(job, arguments["private"]) as private:
        name_semaphores(private)
        copy = job.copy
        folder = copy.folder if copy else job.folder
        if is_crash_loop(copy.history() if copy else eventlog.read(folder), job.launch):
            return "crash loop"
        try:
            if not job.use_gpu and not cpu_helper.is_compiled():  # once per node
                cpu_helper.compile_alone()
            _join_group(config, job, private)
            eventlog.separate_hosts()
            with copy.kept(config) if copy else contextlib.nullcontext():
                is_done = train_worker(config, folder, job.launch)
            dist.destroy_process_group()
        except Exception as error:
            rank = get_context().get_world_rank()
            eventlog.append(folder, events.Failure.of(error, launch=job.launch, rank=rank))
            if copy:
                copy.send_log()
            raise
    return "done" if is_done else "stopped"


@contextlib.contextmanager
def _private_folder(job: Job, of_driver: Path) -> Iterator[Path]:
    """Yield the private folder of the driver, or one of this node's own if that is on another."""
    if job.is_spread:
        with private_folder() as own:
            yield own
    else:
        yield of_driver


def _join_group(config: Config, job: Job, private: Path) -> None:
    """Join the process group of all workers."""
    from ray.train import get_context

    context = get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(_device_index() if job.use_gpu else context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }
    timeout = timedelta(seconds=config.failure.timeout_s)
    rank, world = context.get_world_rank(), context.get_world_size()
    store = _network_store(rank, world, timeout) if job.is_spread else _file_store(world, private)
    dist.init_process_group(
        "nccl" if job.use_gpu else "gloo", store=store, rank=rank, world_size=world, timeout=timeout
    )


def _device_index() -> int:
    """Return the index of this worker's GPU among those that it sees.

    It sees those of all workers of its node, or only its own (if two nodes of Ray are on one
    machine, or the user's variables say so).
    """
    from ray.train.torch import get_device

    index = get_device().index or 0
    return index if index < torch.cuda.device_count() else 0


def _file_store(world: int, private: Path) -> Store:
    """Return a store of the workers of one machine, which is a file instead of a server."""
    from ray.train.collective import broadcast_from_rank_zero

    return FileStore(str(private / broadcast_from_rank_zero(f"store-{uuid4().hex}")), world)


def _network_store(rank: int, world: int, timeout: timedelta) -> Store:
    """Return a store that listens to the address of rank 0's node, at a port that is free there.

    gloo and NCCL use the interface of that address, unless the user has named another.

    Raises:
        Failed: No interface of this node has the address that Ray knows.
    """
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    address = ray.util.get_node_ip_address()
    interface = interface_of(address)
    if interface is None:
        raise Failed(f"no network interface has the address of this node, {address}")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # exactly this one
    if rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, 0), family=family)
        port = listener.getsockname()[1]
        store = TCPStore(
            address,
            port,
            world,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        broadcast_from_rank_zero((address, port))
        return store
    address, port = broadcast_from_rank_zero(("", 0))
    return TCPStore(address, port, world, is_master=False, timeout=timeout)
