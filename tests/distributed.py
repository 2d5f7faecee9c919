"""Run a function on every rank of a new gloo process group."""

import multiprocessing
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(
    function: Callable, world: int, *args: Any, timeout_s: float = 240, fork: bool = False
) -> list[Any]:
    """Call a function on every rank of a new process group.

    Args:
        function: A function that a new process can import.
        world: Number of ranks.
        args: Arguments of the function.
        timeout_s: Seconds until all ranks are killed.
        fork: Import the function once, in a process without threads from which the ranks are
            forked. This saves most of their start.

    Returns:
        What the function returned on each rank, in their order.

    Raises:
        TimeoutError: The ranks did not end in time.
        ProcessRaisedException: A rank raised an error.
    """
    method = "forkserver" if fork else "spawn"
    if fork:
        multiprocessing.set_forkserver_preload([function.__module__])
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, free_port(), folder, function, args)
        ranks = mp.start_processes(_main, arguments, world, join=False, start_method=method)
        deadline = time.monotonic() + timeout_s
        while not ranks.join(timeout=1):
            if time.monotonic() > deadline:
                for process in ranks.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} on {world} ranks after {timeout_s} s")
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(world)]


def free_port() -> int:
    """Return a port that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _main(rank: int, world: int, port: int, folder: str, function: Callable, args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed uses deprecated names
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(function(*args), Path(folder) / str(rank))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's CPU helper crashes after the end of the process group
