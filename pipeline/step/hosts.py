"""The speed of all workers, and the memory of all hosts, without a wait for a GPU."""

import os
import platform
from pathlib import Path

import torch

from pipeline.distributed import all_gather, rank_and_world, sum_on_hosts

GIB = 2**30
MEMINFO = Path("/proc/meminfo")


class Hosts:
    """The workers of a run by host. All ranks must make it together, and call its methods together.

    Args:
        device: This rank's device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._hosts = all_gather(platform.node())

    def speed(self, own: dict[str, float]) -> dict[str, float]:
        """Return the figures of an interval with the longest wait for data of all workers.

        Args:
            own: The figures of this rank's meter.
        """
        waits = self._gathered([own["data_wait_s"]])[:, 0]
        return {
            **own,
            "data_wait_s": float(waits.max()),
            "data_wait_worker": int(waits.argmax()),
            "images_per_s_per_worker": round(own["images_per_s"] / len(self._hosts), 3),
        }

    def memory(self) -> dict[str, float]:
        """Return the memory and the load of each host, and the GPU memory of its fullest GPU.

        Returns:
            `hosts/NAME.memory_gib`: memory in use. `hosts/NAME.load`: processes that want to run,
            per core. `hosts/NAME.gpu_memory_gib`: memory that torch has reserved on a GPU at most.
        """
        cores = os.cpu_count() or 1
        has_gpu = self._device.type == "cuda"
        reserved = torch.cuda.max_memory_reserved(self._device) if has_gpu else 0
        rows = self._gathered([used_memory() / GIB, os.getloadavg()[0] / cores, reserved / GIB])
        figures: dict[str, float] = {}
        for host in dict.fromkeys(self._hosts):
            ranks = [rank for rank, name in enumerate(self._hosts) if name == host]
            memory, load, gpu = rows[ranks].amax(0).tolist()
            figures |= {f"hosts/{host}.memory_gib": memory, f"hosts/{host}.load": load}
            figures |= {f"hosts/{host}.gpu_memory_gib": gpu} if has_gpu else {}
        return {name: round(value, 3) for name, value in figures.items()}

    def _gathered(self, own: list[float]) -> torch.Tensor:
        """Return the figures of all ranks, `float64 [ranks, figures]`."""
        rank, world = rank_and_world()
        table = torch.zeros(world, len(own), dtype=torch.float64)
        table[rank] = torch.tensor(own, dtype=torch.float64)
        return sum_on_hosts(table)


def used_memory() -> int:
    """Return the bytes of this host's memory that are in use; 0 if the system does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
        kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
        return 1024 * (kib["MemTotal"] - kib["MemAvailable"])
    except (OSError, KeyError, ValueError, IndexError):
        return 0
