"""`check --on HOST:PORT` finds what is wrong with the hosts of a cluster, all at once."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from tests.cluster.hosts import ROOT, Host, RayCluster, hosts, ray_cluster
from tests.jobs.small import untrained, words

PACKAGES = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages")
START_UP = PACKAGES / "distutils-precedence.pth"  # Python runs it; a host gets another one
KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}


def hide(host: Host, folder: Path, kib: int = 1024) -> None:
    """Put an empty disk over a folder of a host."""
    folder.mkdir(parents=True, exist_ok=True)
    host.run("mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(folder))


def replace(host: Host, path: Path, other: Path) -> None:
    """Let a host see another file or folder at a path."""
    host.run("mount", "--bind", str(other), str(path))


def other_version(host: Host, package: str, version: str, folder: Path) -> None:
    """Let a host have another version of a package."""
    (metadata,) = PACKAGES.glob(f"{package}-*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    changed = [f"Version: {version}" if line.startswith("Version: ") else line for line in lines]
    (folder / package).write_text("\n".join(changed))
    replace(host, metadata, folder / package)


def check(host: Host, cluster: RayCluster, cwd: Path, *settings: str, **variables: str) -> tuple:
    """Run `check` on a host and return its exit code, its findings, and its last line."""
    _, *command = words(cwd / "shards", *settings)
    process = host.jobs(
        *("check", *command, "--on", cluster.address, "--json"),
        cwd=cwd,
        env=cluster.access | variables,
    )
    out, err = process.communicate(timeout=200)
    print(err)
    return process.returncode, json.loads(out)["findings"], err.splitlines()[-1]


def is_found(findings: list, host: str, *words: str) -> bool:
    """Return whether a finding names a host, has words in its cause, and has a fix."""
    return any(
        host in finding["hosts"]
        and finding["fix"]
        and all(word in finding["what"] for word in words)
        for finding in findings
    )


@pytest.fixture
def folder(tmp_path, photographs):
    """Return a folder with shards and a run to start from."""
    shutil.copytree(photographs, tmp_path / "shards")
    shutil.copytree(photographs / "train", tmp_path / "other")
    untrained(tmp_path, tmp_path / "shards").rename(tmp_path / "start")
    return tmp_path


def plant(h2: Host, folder: Path) -> None:
    """Misconfigure a host that is part of a cluster."""
    shadow = folder / "shadow"
    shutil.copytree(ROOT / "shards", shadow / "shards")
    with (shadow / "shards" / "text.py").open("a") as file:
        file.write("# another version\n")
    (shadow / "late.py").write_text(
        "import time\nnow = time.time\ntime.time = lambda: now() + 90\n"
    )
    start_up = folder / "start_up.pth"
    start_up.write_text(f"import sys; sys.path.insert(0, {str(shadow)!r}); import late\n")
    replace(h2, START_UP, start_up)
    other_version(h2, "omegaconf", "2.3.0", folder)
    other_version(h2, "torch", "2.12.0", folder)
    hide(h2, folder / "shards" / "train")
    replace(h2, folder / "shards" / "val", folder / "other")
    hide(h2, folder / "start")
    hide(h2, folder / "runs", kib=64)
    hide(h2, Path("/dev/shm"), kib=2048)
    hide(h2, h2.folder / "home" / ".cache", kib=16)
    (raylet,) = (
        pid
        for pid in h2.processes()
        if b"raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    )
    subprocess.run(["prlimit", f"--pid={raylet}", "--nofile=300:300"], check=True)


def own_processes(host: Host) -> list[bytes]:
    """Return the command lines of what preflight has started on a host and still runs."""
    lines = []
    for pid in host.processes():
        with contextlib.suppress(OSError):  # it has ended
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return [line for line in lines if b"\0jobs" in line or b"Prober" in line]


def end_all(*hosts: Host) -> list[bytes]:
    """Wait until nothing of preflight is left on hosts, and return what is."""
    deadline = time.monotonic() + 30
    while (left := [line for host in hosts for line in own_processes(host)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.2)
    return left


FAULTS = [  # host, words of the cause
    ("h2", "torch 2.12.0 is installed, but h1 has"),
    ("h2", "omegaconf 2.3.0 is installed"),
    ("h2", "the code differs from that of h1 in 1 files: shards/text.py"),
    ("h2", "clock is", "ahead of that of the driver"),
    ("h2", "data.train=file://", "not a shard set"),
    ("h2", "shards/val: another shard set than on h1"),
    ("h2", "model.init_from=", "does not exist"),
    ("h2", "a file that h1 has written there is not seen"),
    ("h2", "runs has", "free, but a checkpoint takes"),
    ("h2", "/dev/shm has"),
    ("h2", "a process may open 300 files"),
    ("h2", "data.cache.folder=", "can hold", "of shards"),
    ("h1", "data.stages=stage:one: No module named 'stage'"),
]
WISHES = [
    ("h1", "the cluster has only 0 of the GPUs that 9 workers need"),
    ("h2", "torch", "sees no GPU"),
    ("h2", "GLOO_SOCKET_IFNAME=lo"),
    ("h2", "h1 and h2 cannot add a tensor with gloo"),
    ("h1", "runs=s3://nothing/runs: the server has no such bucket"),
]


@pytest.mark.slow
def test_faults_of_hosts_are_found_at_once(folder):
    with hosts() as (h1, h2), ray_cluster((h1, h2), cpus=2) as ray:
        plant(h2, folder)
        settings = [
            *(f"data.train=file://{folder}/shards/train", "data.loader_workers=1", "data.crop=512"),
            *(f"model.init_from={folder}/start", "data.stages=[stage:one]"),
        ]
        code, findings, line = check(h1, ray, folder, *settings)
        assert (code, "preflight found" in line) == (2, True)
        missed = [fault for fault in FAULTS if not is_found(findings, *fault)]
        assert not missed, findings
        assert end_all(h1, h2) == []
        assert list((folder / "runs").iterdir()) == []

        wishes = ["scaling.gpu=true", "scaling.workers=9", "batch.size=18"]
        server = h1.address.rpartition(".")[0] + ".254"  # this machine
        moto = ThreadedMotoServer(server, port=0)
        moto.start()
        _, port = moto.get_host_and_port()
        variables = {"AWS_ENDPOINT_URL": f"http://{server}:{port}", "GLOO_SOCKET_IFNAME": "lo"}
        wishes += ["runs=s3://nothing/runs"]
        code, findings, line = check(h1, ray, folder, *wishes, **KEYS, **variables)
        moto.stop()
        assert code == 2
        assert not [wish for wish in WISHES if not is_found(findings, *wish)], findings
        assert end_all(h1, h2) == []

        train = h1.jobs(*words(folder / "shards"), "--on", ray.address, cwd=folder, env=ray.access)
        out, err = train.communicate(timeout=300)
        assert train.returncode == 2, err
        assert "error: h2: the code differs from that of h1" in out
        assert err.splitlines()[-1].startswith("error: preflight found")
        assert end_all(h1, h2) == []
        assert list((folder / "runs").iterdir()) == []
