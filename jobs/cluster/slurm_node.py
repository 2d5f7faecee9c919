"""Ray on one node of a job of SLURM, as a task of the job's step of Ray.

The first node runs the head and reports on its standard output, one line each: "joined NODE" for
every node, "ready HOST:PORT" after all have joined, and "lost NODE" if one leaves. A node whose Ray
ends reports "ended …". The task ends with its Ray, with its input, which is that of the step, or by
a signal. Ray ends with the task.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from jobs.cluster.ray_cluster import ALIVE
from jobs.cluster.slurm_step import ENDED
from jobs.interrupts import Ended, handled, requests
from jobs.processes import adopt_orphans, end_descendants
from jobs.ray_session import ENVIRONMENT, OBJECT_STORE_BYTES, STARTS
from shards.scratch import private_folder

POLL_S = 1.0
ASK_S = 10
HEAD_S = 300  # for the head to listen
STARTED = "ray_current_cluster"  # `ray start` writes it into its folder once Ray is up


def main() -> int:
    """Run Ray on this node until it ends or this task is asked to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    head = os.environ["SLURM_LAUNCH_NODE_IPADDR"]  # the step is started on the first node
    adopt_orphans()
    threading.Thread(target=_end_with_input, daemon=True).start()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(Ended), handled(requests.end), private_folder() as folder:
        try:
            return _run(head, port, folder)
        finally:
            end_descendants()
    return 0


def _run(head: str, port: int, folder: Path) -> int:
    """Run Ray, and start it again if it did not start, as `jobs.train` does on one machine."""
    is_head = os.environ["SLURM_NODEID"] == "0"
    code = 0
    for _ in range(STARTS):
        ray = _start(head, port, folder, is_head)
        if is_head and _report(ray, head, port):
            break
        code = ray.wait()
        if (folder / STARTED).exists():
            break
        end_descendants()
    print(f"{ENDED} with exit code {code}", flush=True)
    return 1


def _start(head: str, port: int, folder: Path, is_head: bool) -> subprocess.Popen[bytes]:
    address = head if is_head else _own_address(head, port)
    role = ["--head", f"--port={port}", f"--ray-client-server-port={port + 1}"]
    role = [*role, "--include-dashboard=false"] if is_head else [f"--address={head}:{port}"]
    return subprocess.Popen([
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block"),
        *role,
        *(f"--node-ip-address={address}", f"--node-name={os.environ['SLURMD_NODENAME']}"),
        *(f"--num-cpus={os.environ['SLURM_CPUS_ON_NODE']}", f"--num-gpus={_gpus()}"),
        *(f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        # Random free ports: two jobs may share a node.
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        *("--disable-usage-stats", "--log-color=false"),
    ], stdin=subprocess.DEVNULL)  # fmt: skip


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _gpus() -> int:
    return int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))


def _own_address(head: str, port: int) -> str:
    """Return the address from which this node reaches the head, once the head listens."""
    deadline = time.monotonic() + HEAD_S
    while True:
        try:
            with socket.create_connection((head, port), ASK_S) as connection:
                return connection.getsockname()[0]
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def _report(ray: subprocess.Popen[bytes], head: str, port: int) -> bool:
    """Report which nodes join and leave. Return True if one is lost, False if the head's Ray ends.

    Args:
        ray: The head's own Ray.
        head: The address of the head.
        port: Its port.
    """
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] in C++

    count, joined, client = int(os.environ["SLURM_NNODES"]), set[str](), None
    while ray.poll() is None:
        time.sleep(POLL_S)
        try:
            if client is None:
                socket.create_connection((head, port), ASK_S).close()
                client = GcsClient(address=f"{head}:{port}")
            nodes = client.get_all_node_info(timeout=ASK_S).values()
        except (OSError, RuntimeError):  # the head is not up yet, or is busy
            continue
        alive = {node.node_name for node in nodes if node.state == ALIVE}
        for name in sorted(alive - joined):
            print(f"joined {name}", flush=True)
        if len(alive) == count and len(joined) < count:
            print(f"ready {head}:{port}", flush=True)
        if lost := sorted(joined - alive):
            print(f"lost {lost[0]}", flush=True)
            return True
        joined |= alive
    return False


if __name__ == "__main__":
    sys.exit(main())
