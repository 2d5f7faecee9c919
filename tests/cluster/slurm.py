"""A real SLURM on the hosts of `tests.cluster.hosts`: munged, slurmctld, and a slurmd per host.

Its files are in a temporary folder, its ports and its key of munge are its own, and nothing is left
of it at the end.
"""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.hosts import Host, has_namespaces, hosts

UP_S = 60
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "shellcheck")
# A requeued job starts as soon as it may.
CONFIG = """\
ClusterName=test
SlurmctldHost=login({login})
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
MpiDefault=none
SwitchType=switch/none
JobRequeue=0
KillWait=5
MessageTimeout=5
ReturnToService=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclasses.dataclass
class Slurm:
    """A SLURM cluster.

    Attributes:
        hosts: Its nodes.
        login: The host of the controller, which runs no job.
        folder: Its files.
        daemons: Its processes.
    """

    hosts: Sequence[Host]
    login: Host
    folder: Path
    daemons: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    @property
    def access(self) -> dict[str, str]:
        """The variable that lets a command use the cluster."""
        return {"SLURM_CONF": f"{self.folder}/slurm.conf"}

    def run(self, *command: str) -> str:
        """Run a command of SLURM on this machine and return its output; fail if it fails."""
        done = subprocess.run(
            command, env=os.environ | self.access, capture_output=True, text=True, timeout=UP_S
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, host: Host, *command: str) -> None:
        """Start a daemon on a host, for the first time or after its end."""
        with (self.folder / "daemons.log").open("a") as log:
            self.daemons.append(host.start(
                *command, env=self.access, stdout=log, stderr=subprocess.STDOUT
            ))  # fmt: skip

    def start_node(self, host: Host) -> None:
        """Start the slurmd of a host, for the first time or after its end."""
        self.start(host, "slurmd", "-D", "-N", host.name)

    def wait_idle(self) -> None:
        """Wait until all nodes can take jobs."""
        self.wait(
            lambda: self.run("sinfo", "-h", "-N", "-o", "%t").split(), ["idle"] * len(self.hosts)
        )

    def wait(self, look: Callable[[], object], wanted: object, timeout_s: float = UP_S) -> None:
        """Wait until `look` returns what is wanted."""
        deadline = time.monotonic() + timeout_s
        while (found := look()) != wanted:
            assert time.monotonic() < deadline, f"{found}, not {wanted}\n{self.logs()}"
            time.sleep(0.2)

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING."""
        found = re.search(r"JobState=(\S+)", self.run("scontrol", "show", "job", job))
        assert found
        return found[1]

    def logs(self) -> str:
        """Return the end of the logs of all daemons."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)


@contextlib.contextmanager
def slurm(*, count: int = 2, cpus: int = 4) -> Iterator[Slurm]:
    """Start SLURM on new hosts; end its daemons, its jobs, and the hosts with the context.

    Args:
        count: Number of nodes.
        cpus: CPUs of each node, as SLURM is told.
    """
    if not has_namespaces() or not all(map(shutil.which, PROGRAMS)):
        pytest.skip("namespaces")
    folder = Path(
        tempfile.mkdtemp(prefix="ms", dir="/tmp")
    )  # the socket of munge needs a short path
    folder.chmod(0o755)
    try:
        names = [*(f"h{index + 1}" for index in range(count)), "login"]
        with hosts(count + 1, names) as made:
            cluster = Slurm(made[:-1], made[-1], folder)
            try:
                _start(cluster, cpus)
                yield cluster
            finally:
                for host in made:
                    host.kill_processes()
                for daemon in cluster.daemons:
                    daemon.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(cluster: Slurm, cpus: int) -> None:
    folder = cluster.folder
    config = CONFIG.format(login=cluster.login.address, folder=folder)
    for host in cluster.hosts:
        config += f"NodeName={host.name} NodeHostname={host.name} NodeAddr={host.address} "
        config += f"CPUs={cpus} Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=8000\n"
    (folder / "slurm.conf").write_text(config)
    (folder / "cgroup.conf").write_text(
        f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={folder}/cgroup\n"
    )
    for name in ("state", "cgroup"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o400)
    key.write_bytes(secrets.token_bytes(128))
    socket_path = folder / "munge.socket"
    cluster.start(
        cluster.login,
        *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_path}"),
        *(f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed"),
        f"--log-file={folder}/munge.log",
    )
    cluster.wait(socket_path.exists, True)
    cluster.start(cluster.login, "slurmctld", "-D")
    for host in cluster.hosts:
        cluster.start_node(host)
    cluster.wait(lambda: _is_up(cluster), True)
    cluster.wait_idle()


def _is_up(cluster: Slurm) -> bool:
    """Return whether the controller answers."""
    command = ["scontrol", "ping"]
    env = os.environ | cluster.access
    return subprocess.run(command, env=env, capture_output=True).returncode == 0
