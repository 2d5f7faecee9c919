"""What a host says about itself, and what it can reach, before workers are reserved on it.

Preflight sends this module to the nodes as it is here, because the code on a node may be another.
An exception of a probe is part of the answer, and a probe that hangs is left behind.
"""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import xxhash

from jobs.cluster.marker import ONCE, exchange
from jobs.cluster.ray_cluster import interface_of
from shards.errors import DataError, Failed, M2FError, UsageError, some_of
from shards.files import expanded, is_url
from shards.format.manifest import MANIFEST, Manifest
from shards.remote import RemoteFolder

PACKAGES = ("shards", "model", "pipeline", "jobs")
CODE = (".py", ".yaml")
SHARED_MEMORY = Path("/dev/shm")
CHECKPOINT_MANIFEST = "MANIFEST.json"
LOOKED_AT = 8  # shards of a URL, at equal distances


@dataclass(frozen=True)
class Plan:
    """What a host is asked to look at.

    Attributes:
        packages: Names of the packages whose versions count.
        sets: The setting of each shard set, by its folder or URL.
        cache: Folder of the shard cache.
        runs: Folder or URL of all runs.
        work: Folder of this host that takes the checkpoints.
        marker: Name of the folder in `runs` through which hosts exchange files; "" for none.
        weights: File or folder of weights; "" for none.
        weights_key: The setting that names them.
        address: The address of this host in the cluster; "" if there is no cluster.
        limit_s: Time after which a probe without an answer is left behind.
    """

    packages: tuple[str, ...]
    sets: dict[str, str]
    cache: str
    runs: str
    work: str
    marker: str = ""
    weights: str = ""
    weights_key: str = ""
    address: str = ""
    limit_s: float = 20


Answers = dict[str, Any]  # by the name of the probe: its facts, or the error that it ended with


def look(plan: Plan, name: str) -> Answers:
    """Run all probes at the same time and return their answers.

    Args:
        plan: What to look at.
        name: Name of this host.
    """
    probes: dict[str, Callable[[], Any]] = {
        "versions": partial(versions, plan.packages),
        "code": code,
        "machine": partial(machine, plan.address),
        "work": partial(room, plan.work),
        **{
            f"set {location}": partial(shard_set, location, key)
            for location, key in plan.sets.items()
        },
    }
    if any(map(is_url, plan.sets)):
        probes["cache"] = partial(room, plan.cache)
    if plan.marker:
        probes["runs"] = partial(exchange, plan.runs, plan.marker, name)
    if plan.weights:
        probes["weights"] = partial(weights, Path(plan.weights), plan.weights_key)
    late = Failed(f"the probe gave no answer in {plan.limit_s:g} s", fix="check what it waits for")
    answers: Answers = {probe: late.at(probe) for probe in probes}
    threads = [
        threading.Thread(target=_answer, args=(answers, probe, function), daemon=True)
        for probe, function in probes.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + plan.limit_s
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return dict(answers)


def _answer(answers: Answers, probe: str, function: Callable[[], Any]) -> None:
    try:
        answers[probe] = function()
    except M2FError as error:
        answers[probe] = error
    except OSError as error:
        what = error.strerror or str(error)
        answers[probe] = UsageError(what, where=error.filename or probe)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        answers[probe] = Failed(what, where=probe)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"Python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code() -> dict[str, str]:
    """Return a hash of every file of our packages by its path, as this host imports them."""
    hashes = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        (folder,) = (spec and spec.submodule_search_locations) or [""]
        for path in Path(folder).rglob("*") if folder else ():
            if path.suffix in CODE:
                name = f"{package}/{path.relative_to(folder)}"
                hashes[name] = xxhash.xxh3_64_hexdigest(path.read_bytes())
    return hashes


def machine(address: str) -> dict[str, Any]:
    """Return the cores, the memory, the load, and the limits of this host."""
    memory = psutil.virtual_memory()
    shared = shutil.disk_usage(SHARED_MEMORY)
    chosen = {name: os.environ.get(name) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory": _memory_limit(memory.total),
        "memory_free": memory.available,
        "load": os.getloadavg()[0],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "shm": shared.total,
        "shm_free": shared.free,
        "interface": interface_of(address),
        "chosen_interfaces": {name: value for name, value in chosen.items() if value},
    }


def _memory_limit(total: int) -> int:
    """Return the memory of this host, or of the container if that has less."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdecimal() else total


def room(folder: str) -> dict[str, Any]:
    """Return the free bytes for a folder, those of shards in it, and whether it can be written."""
    path = existing = expanded(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    is_usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    shards = sum(file.stat().st_size for file in path.glob("*.tar"))
    free = shutil.disk_usage(existing).free
    return {"path": str(path), "free": free, "shards": shards, "is_usable": is_usable}


def shard_set(location: str, key: str) -> dict[str, Any]:
    """Return the fingerprint of a shard set, after a look at its shards.

    Args:
        location: Its folder or URL.
        key: The setting that names it.

    Raises:
        UsageError: There is no set, or it cannot be reached.
        DataError: Its manifest is damaged, or a shard is missing or has another size.
    """
    try:
        is_remote = is_url(location)
        manifest, size_of = _remote_set(location) if is_remote else _local_set(Path(location))
    except M2FError as error:
        raise error.at(f"{key}={error.problem.where or location}") from error
    wrong = [
        shard.name if size is None else f"{shard.name} has {size} bytes instead of {shard.bytes}"
        for shard in manifest.shards
        if (size := size_of(shard.name)) not in (shard.bytes, "unknown")
    ]
    if wrong:
        what = f"{len(wrong)} of {len(manifest.shards)} shards are missing or have another size"
        fix = "copy the whole set again"
        raise DataError(f"{what}: {some_of(wrong, 3)}", where=f"{key}={location}", fix=fix)
    return {
        "fingerprint": manifest.fingerprint,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "index_bytes": manifest.index.bytes,
    }


def _local_set(folder: Path) -> tuple[Manifest, Callable[[str], Any]]:
    def size(name: str) -> int | None:
        path = folder / name
        return path.stat().st_size if path.is_file() else None

    return Manifest.load(folder), size


def _remote_set(url: str) -> tuple[Manifest, Callable[[str], Any]]:
    remote = RemoteFolder(url, ONCE)
    with tempfile.TemporaryDirectory() as folder:
        try:
            Path(folder, MANIFEST).write_bytes(remote.read(MANIFEST))
        except FileNotFoundError as error:
            raise UsageError(f"not a shard set ({MANIFEST} is missing)") from error
        manifest = Manifest.load(Path(folder))
    names = [shard.name for shard in manifest.shards]
    asked = set(names[:: -(-len(names) // LOOKED_AT)])

    def size(name: str) -> int | str | None:
        info = remote.info(name) if name in asked else None
        return info and info.bytes if name in asked else "unknown"

    return manifest, size


def weights(path: Path, key: str) -> str:
    """Return a hash of the files at a path: of a checkpoint, of its manifest, which has hashes.

    Args:
        path: The file or folder.
        key: The setting that names it.

    Raises:
        UsageError: It does not exist.
        OSError: It cannot be read.
    """
    if not path.exists():
        raise UsageError("does not exist", where=f"{key}={path}")
    files = sorted(file for file in path.glob("*") if file.is_file()) or [path]
    manifest = path / CHECKPOINT_MANIFEST
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        if manifest not in files or file == manifest:
            with file.open("rb") as opened:
                while piece := opened.read(8 << 20):
                    digest.update(piece)
    return digest.hexdigest()
