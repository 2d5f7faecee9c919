"""A short-lived process with torch that preflight asks for GPUs, stages, and an all-reduce.

It is a process of its own, because CUDA, NCCL, and the functions of a user can crash or hang. It
answers one JSON request per line, and ends as soon as its input does.
"""

import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.cuda import nccl

from jobs.cluster.ray_cluster import interface_of
from pipeline.data.stages import load_stage
from shards.errors import M2FError


def devices() -> dict[str, Any]:
    """Return what torch says about the GPUs of this host."""
    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": torch.cuda.get_device_name(index), "memory": total, "free": free})
    version = ".".join(map(str, nccl.version())) if gpus else None
    return {"torch": torch.__version__, "nccl": version, "gpus": gpus}


def stages(names: list[str]) -> list[dict[str, str]]:
    """Import stages and return the problems of those that cannot be imported."""
    problems = []
    for name in names:
        try:
            load_stage(name)
        except M2FError as error:
            problems.append(asdict(error.problem))
    return problems


def meet(
    rank: int, world: int, address: str, host: str, port: int, gpu: bool, limit_s: float
) -> float:
    """Join a process group of all hosts and return the sum of a one from each of them.

    Args:
        rank: The rank of this host.
        world: Number of hosts.
        address: The address of this host.
        host: The address of the host with rank 0.
        port: A port that is free there.
        gpu: Whether the tensor is on a GPU.
        limit_s: Time limit of each operation.
    """
    limit = timedelta(seconds=limit_s)
    if interface := interface_of(address):  # as the workers do
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    store = TCPStore(host, port, world, is_master=rank == 0, timeout=limit)
    backend, device = ("nccl", torch.device("cuda", 0)) if gpu else ("gloo", torch.device("cpu"))
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    one = torch.ones(1, device=device)
    dist.all_reduce(one)
    total = one.item()
    dist.barrier()  # rank 0 holds the store until the others are done
    dist.destroy_process_group()
    return total


REQUESTS = {"devices": devices, "stages": stages, "meet": meet}


def main() -> None:
    """Answer the requests on the standard input on the standard output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        name, arguments = json.loads(requests.get())
        try:
            answer = {"facts": REQUESTS[name](**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".strip().partition("\n")[0]}
        print(json.dumps(answer), file=answers)


def _read(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # a request that hangs ends, too


if __name__ == "__main__":
    main()
