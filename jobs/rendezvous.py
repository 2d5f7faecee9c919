"""The process group of the workers: where they meet, and the network that they use."""

import os
import socket
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from jobs.cluster.ray_cluster import interface_of
from shards.errors import Failed


def join_group(use_gpu: bool, timeout_s: float, private: Path | None) -> None:
    """Join the process group of all workers, and set the variables that describe it.

    Args:
        use_gpu: Whether each worker has a GPU.
        timeout_s: Longest time that a worker waits for the others in a collective.
        private: A folder that all workers share if they are on one machine; None on a cluster.
    """
    from ray.train import get_context

    context = get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(_device_index() if use_gpu else context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }
    timeout = timedelta(seconds=timeout_s)
    rank, world = context.get_world_rank(), context.get_world_size()
    store = _file_store(world, private) if private else _network_store(rank, world, timeout)
    backend = "nccl" if use_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)


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
