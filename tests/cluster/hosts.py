"""Hosts with their own network on this machine, and a Ray cluster on them.

A host is a network, a UTS, and a mount namespace of Linux: it has an address, a hostname, and its
own mounts, and shares files, processors, and process ids with this machine. Its link to the others
can be cut. This needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN); without it, tests are skipped.
"""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shards.locks import file_lock

ROOT = Path(__file__).parents[2]
NETWORKS = 200  # 10.77.N.0/24, one for each cluster at a time
RAY_PORT, DASHBOARD_PORT = 6379, 8265
OBJECT_STORE_BYTES = 100 * 2**20
UP_S = 120  # for a cluster to be up on a loaded machine
# Ray reads these. Nodes that are lost are noticed within seconds, and starts are quiet.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@functools.cache
def has_namespaces() -> bool:
    """Return whether this process may make hosts."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return False
    name = f"m2f-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    _ip("netns", "del", name, check=False)
    return made


@dataclass
class Host:
    """A host.

    Attributes:
        name: Its hostname.
        address: Its address in the network of its cluster.
        folder: A folder of its own, on this machine's disk, with a short path; HOME and TMPDIR of
            its commands are below it.
        namespace: Name of its network namespace.
        wire: The end of its link on this machine.
        gateway: The address of this machine in that network.
        holder: The process that keeps its namespaces.
        variables: Environment variables of its commands, beside those of this process.
    """

    name: str
    address: str
    folder: Path
    namespace: str
    wire: str
    gateway: str
    holder: subprocess.Popen
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def enter(self) -> list[str]:
        """The start of a command line that runs on the host."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--uts", "--mount"]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of commands on the host."""
        own = {"HOME": f"{self.folder}/home", "TMPDIR": f"{self.folder}/tmp"}
        code = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return os.environ | own | code | self.variables | more

    def start(self, *command: str, cwd: Path | None = None, **more: Any) -> subprocess.Popen:
        """Start a command on the host, in a process group of its own.

        Args:
            command: The words of the command.
            cwd: Its working directory.
            more: Arguments of Popen; `env` holds variables beside those of the host.
        """
        env = self.environment(**more.pop("env", {}))
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
        enter = [*self.enter, f"--wd={cwd or '/'}"]
        return subprocess.Popen([*enter, *command], env=env, start_new_session=True, **more)

    def jobs(self, *words: str, cwd: Path, **more: Any) -> subprocess.Popen:
        """Start `python -m jobs WORDS…` on the host."""
        return self.start(sys.executable, "-P", "-m", "jobs", *words, cwd=cwd, **more)

    def run(self, *command: str, **more: Any) -> str:
        """Run a command on the host and return its standard output; fail if it fails."""
        env = self.environment(**more.pop("env", {}))
        done = subprocess.run([*self.enter, *command], env=env, text=True, **{
            "capture_output": True, **more
        })  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def hide(self, folder: Path) -> None:
        """Hide a folder of this machine from the host, as if it were on another disk."""
        self.run("mount", "-t", "tmpfs", "none", str(folder))

    def processes(self) -> list[int]:
        """Return the ids of the host's processes, without the one that keeps it up."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        ).stdout
        return [pid for pid in map(int, listed.split()) if pid != self.holder.pid]

    def kill_processes(self) -> None:
        """Kill everything that runs on the host, as a loss of power does."""
        deadline = time.monotonic() + UP_S
        while (found := self.processes()) and time.monotonic() < deadline:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def cut_link(self) -> None:
        """Cut the link between the host and all others. Its own sockets stay open."""
        _ip("link", "set", self.wire, "down")

    def join_link(self) -> None:
        """Join the link that `cut_link` has cut."""
        _ip("link", "set", self.wire, "up")


@contextlib.contextmanager
def hosts(count: int = 2, names: Sequence[str] = ()) -> Iterator[list[Host]]:
    """Make hosts in one network; kill what runs on them and remove them at the end.

    This machine has the address 10.77.N.254 in that network, so that hosts reach its servers that
    listen to it. Skips the test if this process may not make hosts.

    Args:
        count: Number of hosts.
        names: Their names; h1, h2, … by default.
    """
    if not has_namespaces():
        pytest.skip("namespaces")
    with contextlib.ExitStack() as stack:
        number = _free_network(stack)
        bridge = f"m2f{number}"
        _remove(number)  # what a killed test has left
        stack.callback(_remove, number)
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"10.77.{number}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        folder = Path(stack.enter_context(_short_folder()))
        made = []
        for index in range(1, count + 1):
            name = names[index - 1] if names else f"h{index}"
            made.append(_host(stack, name, number, index, folder / name))
        yield made


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mh", dir="/tmp"))  # the sockets of Ray need short paths
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_network(stack: contextlib.ExitStack) -> int:
    """Return the number of a network that no other process uses, locked as long as the stack."""
    for number in range(1, NETWORKS):
        if stack.enter_context(file_lock(Path(f"/run/m2f-network-{number}.lock"), wait=False)):
            return number
    raise AssertionError("no network is free")


def _remove(number: int) -> None:
    """Remove the hosts and the bridge of a network, if they exist."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        name = line.partition(" ")[0]
        if name.startswith(f"m2f{number}h"):
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for pid in map(int, pids.stdout.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "del", name, check=False)
    for wire in Path("/sys/class/net").glob(f"m2f{number}w*"):  # the kernel removes it later
        _ip("link", "del", wire.name, check=False)
    _ip("link", "del", f"m2f{number}", check=False)


def _host(stack: contextlib.ExitStack, name: str, number: int, index: int, folder: Path) -> Host:
    namespace, wire = f"m2f{number}h{index}", f"m2f{number}w{index}"
    address = f"10.77.{number}.{index}"
    for part in ("home", "tmp"):
        (folder / part).mkdir(parents=True)
    _ip("netns", "add", namespace)
    _ip("link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("link", "set", wire, "master", f"m2f{number}", "up")
    _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        _ip("-n", namespace, "link", "set", device, "up")
    holder = subprocess.Popen([
        *("nsenter", f"--net=/run/netns/{namespace}", "unshare", "--uts", "--mount"),
        *("sh", "-c", 'hostname "$0" && echo up && exec sleep infinity', name),
    ], stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout
    assert holder.stdout.readline() == b"up\n"
    host = Host(name, address, folder, namespace, wire, f"10.77.{number}.254", holder)
    stack.callback(_end, host)
    return host


def _end(host: Host) -> None:
    host.kill_processes()
    host.holder.kill()
    host.holder.wait()
    if host.holder.stdout:
        host.holder.stdout.close()


@dataclass
class RayCluster:
    """A Ray cluster on hosts, whose first one is the head.

    Attributes:
        hosts: Its hosts.
        token: What clients and nodes prove that they may use it.
        nodes: The process `ray start --block` of each host, by the host's name.
        dashboard: Whether the head has the dashboard, which takes jobs.
        cpus: Number of CPUs of each host.
    """

    hosts: Sequence[Host]
    token: str
    dashboard: bool
    cpus: int
    nodes: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """HOST:PORT of the cluster."""
        return f"{self.hosts[0].address}:{RAY_PORT}"

    @property
    def url(self) -> str:
        """The URL of the job server."""
        return f"http://{self.hosts[0].address}:{DASHBOARD_PORT}"

    @property
    def access(self) -> dict[str, str]:
        """The variables that let a command use the cluster."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start_node(self, host: Host, cpus: int | None = None) -> None:
        """Start Ray on a host, for the first time or again, with a number of CPUs of its own."""
        head = host is self.hosts[0]
        role = ["--head", f"--port={RAY_PORT}"] if head else [f"--address={self.address}"]
        if head:
            role += [f"--include-dashboard={str(self.dashboard).lower()}"]
            role += ["--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
        log = (host.folder / "ray.log").open("a")
        self.nodes[host.name] = host.start(
            *(str(Path(sys.executable).with_name("ray")), "start", *role, "--block"),
            *(f"--node-ip-address={host.address}", f"--temp-dir={host.folder}/ray"),
            *(f"--num-cpus={cpus or self.cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            *("--num-gpus=0", "--disable-usage-stats"),
            env=RAY_ENVIRONMENT | self.access,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()

    def wait(self, count: int | None = None) -> None:
        """Wait until this number of hosts, by default all, have joined the cluster."""
        count = len(self.hosts) if count is None else count
        code = (
            "import sys; from ray._raylet import GcsClient; "
            "nodes = GcsClient(address=sys.argv[1]).get_all_node_info(); "
            "print(sum(node.state == 0 for node in nodes.values()))"  # 0 is ALIVE
        )
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            asked = subprocess.run(
                [*self.hosts[0].enter, sys.executable, "-c", code, self.address],
                env=self.hosts[0].environment(**RAY_ENVIRONMENT, **self.access),
                capture_output=True,
                text=True,
            )
            if asked.stdout.strip() == str(count):
                return
            for host in self.hosts:  # Ray gives its start 30 s, which a loaded machine may exceed
                if count == len(self.hosts) and self.nodes[host.name].poll() is not None:
                    host.kill_processes()
                    self.start_node(host)
            time.sleep(0.5)
        logs = "\n".join((host.folder / "ray.log").read_text() for host in self.hosts)
        raise AssertionError(f"{asked.stdout}{asked.stderr}\n{logs}")


@contextlib.contextmanager
def ray_cluster(
    on: Sequence[Host], *, dashboard: bool = False, cpus: int = 2, token: str | None = None
) -> Iterator[RayCluster]:
    """Start a Ray cluster that is protected by a token, and end it with the context."""
    cluster = RayCluster(on, token or secrets.token_hex(32), dashboard, cpus)
    try:
        for host in on:
            cluster.start_node(host)
        cluster.wait()
        yield cluster
    finally:
        for host in on:
            host.kill_processes()
        for node in cluster.nodes.values():
            node.wait()
