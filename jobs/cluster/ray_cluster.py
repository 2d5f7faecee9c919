"""A Ray cluster that a command joins by its address."""

import contextlib
import logging
import os
import platform
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from jobs.cluster.package import copy_code, user_path
from shards.errors import UsageError

CONNECT_TIMEOUT_S = 10
TOKEN_FIX = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster"
)
ALIVE = 0  # the state of a node, as Ray numbers it
# What a worker takes from the environment of the command: the names, and the starts of names.
FORWARDED = (
    *("AWS_", "AZURE_", "FSSPEC_", "GLOO_", "GOOGLE_", "HF_", "M2F_", "NCCL_", "TORCH_", "WANDB_"),
    *("OMP_NUM_THREADS", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy"),
)
# Ray starts a worker with these. They are no secrets, because Ray writes them to its logs.
OF_WORKERS = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "HF_HUB_OFFLINE")


@dataclass(frozen=True)
class Node:
    """A node of a cluster.

    Attributes:
        host: Its hostname.
        address: Its address.
        cpus: Number of CPUs that Ray may assign there.
        gpus: Number of GPUs that Ray may assign there.
    """

    host: str
    address: str
    cpus: float
    gpus: float

    def capacity(self, cpus: int, use_gpu: bool) -> int:
        """Return the number of workers of `cpus` CPUs, and a GPU if they use one, that fit."""
        fitting = int(self.cpus // cpus)
        return min(fitting, int(self.gpus)) if use_gpu else fitting


def fitting(nodes: Iterable[Node], cpus: int, use_gpu: bool) -> int:
    """Return the number of workers of `cpus` CPUs, and a GPU if they use one, that fit on nodes."""
    return sum(node.capacity(cpus, use_gpu) for node in nodes)


@dataclass(frozen=True)
class Variables:
    """Environment variables that workers on other nodes need.

    They may hold secrets. They travel with the arguments of the work, and never in a runtime
    environment, which Ray shows and logs.
    """

    values: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def forwarded(cls) -> Self:
        """Return those of this process that have one of the names in FORWARDED."""
        return cls({name: os.environ[name] for name in os.environ if name.startswith(FORWARDED)})

    def set(self) -> None:
        """Set them in this process."""
        os.environ |= self.values


def nodes(address: str) -> list[Node]:
    """Return the nodes of a cluster, of which this machine is one.

    Raises:
        UsageError: No cluster answers, it refuses the token, or this machine is not a node.
    """
    if address.startswith("ray://"):
        raise UsageError(
            "only build runs from a client outside the cluster",
            where=f"--on {address}",
            fix="give HOST:PORT on a node of the cluster, or submit the command with "
            "--on http://HOST:8265",
        )
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] in C++
    from ray.exceptions import AuthenticationError, RpcError

    with _one_line(address):
        _probe(address)
        try:
            with _silent():
                found = GcsClient(address=address).get_all_node_info(timeout=CONNECT_TIMEOUT_S)
        except AuthenticationError as error:
            raise UsageError(
                "the Ray cluster refuses the token",
                where=f"--on {address}",
                fix=TOKEN_FIX,
            ) from error
        except RpcError as error:
            raise ConnectionError(str(error)) from error
    alive = [node for node in found.values() if node.state == ALIVE]
    _check_member(address, [node.node_manager_address for node in alive])
    return [
        Node(
            node.node_manager_hostname,
            node.node_manager_address,
            node.resources_total.get("CPU", 0),
            node.resources_total.get("GPU", 0),
        )
        for node in alive
    ]


def join(folder: Path, address: str) -> None:
    """Connect this process to a cluster, and send it the code of this checkout.

    Args:
        folder: A folder for a copy of the code.
        address: HOST:PORT, or ray://HOST:PORT for a client outside the cluster.

    Raises:
        UsageError: No cluster answers, it refuses the token, it has another version, or this
            machine is not a node; or the code is too large.
    """
    import ray

    if address.startswith("ray://"):
        with _one_line(address):
            _probe(address)
    else:
        nodes(address)
    environment = {name: os.environ[name] for name in OF_WORKERS if name in os.environ}
    if path := user_path():
        environment["PYTHONPATH"] = os.pathsep.join(path)
    # A command in a Ray job sends its own code again, instead of a conflict with that of the job.
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    code = copy_code(folder)
    with _one_line(address):
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"working_dir": str(code), "env_vars": environment},
        )


def check_shared(paths: Iterable[Path]) -> None:
    """Check that this node has the paths.

    Raises:
        UsageError: One is missing.
    """
    for path in paths:
        if not path.exists():
            raise UsageError(
                f"is missing on the node {platform.node()}",
                where=path,
                fix="give a folder that all nodes share, or a URL",
            )


def interface_of(address: str) -> str | None:
    """Return the network interface of this machine that has an address; None if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address.partition("%")[0] == address for known in addresses):
            return name
    return None


def _probe(address: str) -> None:
    """Connect once, because Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


def _check_member(address: str, members: Sequence[str]) -> None:
    if any(interface_of(member) for member in members):
        return
    host = address.rpartition(":")[0]
    raise UsageError(
        f"this machine is not a node of the Ray cluster ({', '.join(members)})",
        where=f"--on {address}",
        fix=f"run the command on a node, or submit it with --on http://{host}:8265",
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what Ray's C++ code writes to stderr, because its error follows as an exception."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextlib.contextmanager
def _one_line(address: str) -> Iterator[None]:
    """Turn what Ray raises while it connects into one line for the user."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # Ray raises plain exceptions, too
        reason = " ".join(str(error).split())
        if "ersion mismatch" in reason:
            what, fix = reason, "install the cluster's versions here, or restart it with these"
        else:
            what = f"no Ray cluster answers ({reason.partition('. ')[0]})"
            fix = "start it, or give --on local"
        raise UsageError(what, where=f"--on {address}", fix=fix) from error
