"""The figures of all workers and hosts."""

import platform

import torch

from pipeline.distributed import rank_and_world
from pipeline.step import hosts
from pipeline.step.hosts import GIB, Hosts, used_memory
from tests import distributed

SPEED = {"step_s": 0.5, "images_per_s": 16.0}


def figures_of_a_rank() -> tuple[dict[str, float], dict[str, float]]:
    rank, _ = rank_and_world()
    platform.node = lambda: f"node{rank // 2}"
    all_hosts = Hosts(torch.device("cpu"))
    hosts.used_memory = lambda: (rank + 1) * GIB
    return all_hosts.speed({**SPEED, "data_wait_s": 0.1 * rank}), all_hosts.memory()


def test_every_host_and_the_slowest_worker_are_told_apart():
    results = distributed.run(figures_of_a_rank, 3, fork=True)
    assert results[0] == results[1] == results[2]
    speed, memory = results[0]
    assert speed == {**SPEED, "data_wait_s": 0.2, "data_wait_worker": 2,
                     "images_per_s_per_worker": 5.333}  # fmt: skip
    assert (memory["hosts/node0.memory_gib"], memory["hosts/node1.memory_gib"]) == (2, 3)
    assert memory.keys() == {
        f"hosts/node{n}.{kind}" for n in (0, 1) for kind in ("memory_gib", "load")
    }


def test_used_memory_is_read_from_the_system(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    monkeypatch.setattr(hosts, "MEMINFO", path)
    assert used_memory() == 0
    path.write_text("MemTotal:  4096 kB\nMemAvailable:  1024 kB\nHugePages_Total:  0\n")
    assert used_memory() == 3072 * 1024
    path.write_text("MemTotal:\n")
    assert used_memory() == 0
