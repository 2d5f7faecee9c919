"""Where commands use a trained network: the device here, or the workers of a Ray cluster."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jobs import config as configs
from jobs.check import check_fits, uses_gpu
from jobs.cluster.ray_cluster import Node, Variables, check_shared, fitting, join, nodes
from jobs.config import Config
from jobs.ray_session import call
from jobs.stored import opened
from jobs.worker import Job, Work, call_workers, cpus_per_worker
from pipeline.distributed import call_on_all_ranks
from pipeline.run.folder import CONFIG
from shards.files import is_url
from shards.text import say


def inference_device() -> torch.device:
    """Return the device of this rank, or of a command on this machine: its GPU, or the CPU.

    In contrast to training, the precision of torch stays as it is.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def opened_on_rank(run: str, which: str | None) -> Iterator[Path]:
    """Yield the folder of a run on this node of a cluster.

    Args:
        run: The folder, which all nodes share, or the URL of the run.
        which: The checkpoint that is needed.

    Raises:
        UsageError: A node does not have the folder, on all ranks.
    """
    if not is_url(run):
        call_on_all_ranks(lambda: check_shared([Path(run, CONFIG)]))
    with opened(run, which) as folder:
        yield folder


def call_on_cluster(work: Work, config: Config, folder: Path, address: str, doing: str) -> Any:
    """Call a function in the workers of a cluster, and return the result of rank 0.

    There is a worker per GPU. Without GPUs, there are as many workers as the run was trained with,
    or as fit.

    Args:
        work: The function; its arguments are the config and the job.
        config: The config of the run.
        folder: The run folder.
        address: The address of the cluster.
        doing: What the workers do, for the user.

    Raises:
        M2FError: The cluster cannot be joined, or what the first worker raised.
    """
    cluster = nodes(address)
    workers = _number_of_workers(config, cluster)
    check_fits(config, cluster, workers)
    use_gpu = uses_gpu(config, cluster)
    say(f"{doing} with {workers} workers on the {len(cluster)} nodes of the Ray cluster {address}")
    launch, variables = f"{time.time():.3f}", Variables.forwarded()
    job = Job(
        configs.to_dict(config),
        folder,
        launch,
        workers,
        use_gpu,
        is_spread=True,
        variables=variables,
    )
    return call(partial(call_workers, work, config, job), partial(join, address=address))


def _number_of_workers(config: Config, cluster: Sequence[Node]) -> int:
    if uses_gpu(config, cluster) and (gpus := int(sum(node.gpus for node in cluster))):
        return gpus
    most = fitting(cluster, cpus_per_worker(config), use_gpu=False)
    return max(1, min(config.scaling.workers or 1, most))
