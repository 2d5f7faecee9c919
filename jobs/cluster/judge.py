"""Compare what the hosts say about themselves with each other and with what a run needs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.cluster.findings import Finding, warning
from jobs.cluster.needs import Needs
from jobs.cluster.probe import Answers
from pipeline.run.versions import PACKAGES as DECISIVE
from shards.errors import DataError, M2FError, Problem, some_of

CLOCK_ERROR_S, CLOCK_WARNING_S = 60, 5
GIB = 2**30
SAME_ENVIRONMENT = "install the same environment on all hosts: ./launch.sh setup"
SAME_CODE = "use the same checkout on all hosts, and no other on their PYTHONPATH"
SHARE_SET = "copy the whole set to this path on the host, or give a folder that all hosts share"
SHARE_WEIGHTS = "copy it to this path on the host, or give a folder that all hosts share"
SHARE_RUNS = "give a folder that all hosts share and this user can write, or a URL: runs=LOCATION"
ENLARGE = "enlarge it (docker run --shm-size=8g), or lower data.loader_workers"
FIXES = {"set": SHARE_SET, "weights": SHARE_WEIGHTS, "runs": SHARE_RUNS}


@dataclass
class Host:
    """A host and what is known about it.

    Attributes:
        name: Its name.
        answers: The answers of its probes.
        devices: The answer of the process with torch.
        stages: The problems of the stages.
        gpus: Number of GPUs that Ray has there.
        workers: Largest number of workers that it can get.
        clock_s: How far its clock is ahead of the driver's.
        clock_error_s: Largest error of `clock_s`.
    """

    name: str
    answers: Answers = field(default_factory=dict)
    devices: Any = None
    stages: Any = ()
    gpus: int = 0
    workers: int = 1
    clock_s: float = 0
    clock_error_s: float = 0

    @property
    def has_gpu(self) -> bool:
        """Whether torch sees a GPU there."""
        return isinstance(self.devices, dict) and bool(self.devices["gpus"])

    def facts(self, probe: str) -> Any:
        """Return the answer of a probe, or None if it ended with an error."""
        answer = self.answers.get(probe)
        return None if isinstance(answer, M2FError) else answer


def judge(hosts: Sequence[Host], driver: Host, needs: Needs) -> list[Finding]:
    """Return all findings.

    Args:
        hosts: The hosts that can get workers.
        driver: The host that the command runs on; it may be one of them.
        needs: What the run needs.
    """
    return [
        finding
        for host in hosts
        for check in (_errors, _versions, _code, _sets, _runs, _machine, _memory, _rooms, _gpus)
        for finding in check(host, driver, needs)
    ] + list(_kinds(hosts))


def _errors(host: Host, _driver: Host, _needs: Needs) -> Iterator[Finding]:
    for probe, answer in host.answers.items():
        if isinstance(answer, M2FError):
            kind, fix = probe.partition(" ")[0], answer.problem.fix
            if not isinstance(answer, DataError):
                fix = FIXES.get(kind, fix)
            yield replace(Finding.of(host.name, answer), fix=fix)
    if isinstance(host.stages, M2FError):
        yield Finding.of(host.name, host.stages.at("data.stages"), "correct the stage")
        return
    for problem in host.stages:
        yield Finding.of(host.name, Problem(**problem), "correct the stage")


def _versions(host: Host, driver: Host, _: Needs) -> Iterator[Finding]:
    there, here = host.facts("versions"), driver.facts("versions")
    if not (there and here):
        return
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) == here.get(name):
            continue
        found = f"{name} {there[name]}" if name in there else f"no {name}"
        what = f"{found} is installed, but {driver.name} has {here.get(name, 'none')}"
        level = "error" if name in ("Python", *DECISIVE) or name not in there else "warning"
        yield Finding((host.name,), what, SAME_ENVIRONMENT, level)


def _code(host: Host, driver: Host, _: Needs) -> Iterator[Finding]:
    there, here = host.facts("code"), driver.facts("code")
    if there is None or not here or there == here:
        return
    differs = sorted(p for p in there.keys() | here.keys() if there.get(p) != here.get(p))
    what = f"the code differs from that of {driver.name} in {len(differs)} files"
    yield Finding((host.name,), f"{what}: {some_of(differs, 3)}", SAME_CODE)


def _sets(host: Host, driver: Host, _needs: Needs) -> Iterator[Finding]:
    pairs: Mapping[str, tuple[Any, Any]] = {
        probe: (host.facts(probe), driver.facts(probe)) for probe in host.answers
    }
    for probe, (there, here) in pairs.items():
        kind, _, location = probe.partition(" ")
        if kind == "set" and there and here and there["fingerprint"] != here["fingerprint"]:
            prints = f"{there['fingerprint'][:12]} instead of {here['fingerprint'][:12]}"
            what = f"{location}: another shard set than on {driver.name} (fingerprint {prints})"
            yield Finding((host.name,), what, SHARE_SET, is_data=True)
        if kind == "weights" and there and here and there != here:
            what = f"the weights differ from those of {driver.name} (hash {there[:12]})"
            yield Finding((host.name,), what, SHARE_WEIGHTS)


def _runs(host: Host, driver: Host, _: Needs) -> Iterator[Finding]:
    if host.facts("runs") is False:
        what = f"runs: a file that {driver.name} has written there is not seen on this host"
        yield Finding((host.name,), what, SHARE_RUNS)


def _machine(host: Host, _driver: Host, needs: Needs) -> Iterator[Finding]:
    if not (facts := host.facts("machine")):
        return
    shm = needs.shm_bytes * host.workers
    if facts["shm_free"] < shm:
        what = f"/dev/shm has {size(facts['shm_free'])} free, but loader processes need {size(shm)}"
        yield Finding((host.name,), what, ENLARGE)
    if facts["open_files"] < needs.open_files:
        what = f"a process may open {facts['open_files']} files, but needs {needs.open_files}"
        fix = "raise the limit before Ray starts there (ulimit -n 65536, or LimitNOFILE=)"
        yield Finding((host.name,), what, fix)
    for name, chosen in facts["chosen_interfaces"].items():
        if chosen.strip("=") == "lo":
            fix = f"unset it, or name the interface that reaches the others ({facts['interface']})"
            what = f"{name}={chosen}: workers on other hosts cannot be reached through it"
            yield Finding((host.name,), what, fix)
    if facts["load"] > 2 * facts["cores"]:
        what = f"the load is {facts['load']:.0f} on {facts['cores']} cores"
        yield warning(host.name, what, "end what else runs there, or use another host")
    ahead = abs(host.clock_s) - host.clock_error_s
    if ahead > CLOCK_WARNING_S:
        which = "ahead of" if host.clock_s > 0 else "behind"
        what = f"the clock is {abs(host.clock_s):.0f} s {which} that of the driver"
        level = "error" if ahead > CLOCK_ERROR_S else "warning"
        yield Finding((host.name,), what, "synchronize the clocks (chrony or ntpd)", level)


def _memory(host: Host, _driver: Host, needs: Needs) -> Iterator[Finding]:
    """Compare rough estimates, which are no reason to refuse a run."""
    fix = "lower batch.micro or data.crop, raise zero.stage, or write model.checkpoint_activations"
    facts = host.facts("machine")
    per_worker = needs.processes_bytes + (0 if needs.gpu else needs.step_bytes)
    if facts and facts["memory"] < host.workers * per_worker:
        what = (
            f"{host.workers} workers take about {size(host.workers * per_worker)} of memory, but "
            f"the host has {size(facts['memory'])}"
        )
        yield warning(host.name, what, f"{fix}=true, or lower data.loader_workers")
    for gpu in host.devices["gpus"][:1] if needs.gpu and host.has_gpu else ():
        if gpu["memory"] < needs.step_bytes:
            what = (
                f"a worker takes about {size(needs.step_bytes)} of GPU memory, but the "
                f"{gpu['name']} has {size(gpu['memory'])}"
            )
            yield warning(host.name, what, f"{fix}=true")


def _rooms(host: Host, driver: Host, needs: Needs) -> Iterator[Finding]:
    if needs.remote and (cache := host.facts("cache")):
        sets = [driver.facts(f"set {location}") for location in needs.remote]
        sets = [facts for facts in sets if facts]
        wanted = min(needs.cache_bytes, sum(facts["bytes"] for facts in sets))
        index = sum(facts["index_bytes"] for facts in sets)
        where = f"data.cache.folder={cache['path']}"
        fix = "free space, or give another folder: data.cache.folder=FOLDER"
        if not cache["is_usable"]:
            yield Finding((host.name,), f"{where} cannot be written by this user", fix)
        elif cache["free"] + cache["shards"] < index:
            what = f"{where} has {size(cache['free'])} free, but the indices take {size(index)}"
            yield Finding((host.name,), what, fix)
        elif (held := cache["free"] + cache["shards"]) < wanted:
            what = f"{where} can hold {size(held)} of {size(wanted)} of shards, which is slow"
            yield warning(host.name, what, fix)
    if work := host.facts("work"):
        where, fix = work["path"], "free space, or give another location: runs=LOCATION"
        total = needs.checkpoint_bytes * needs.checkpoints
        free = f"{where} has {size(work['free'])} free"
        if not work["is_usable"]:
            yield Finding((host.name,), f"{where} cannot be written by this user", SHARE_RUNS)
        elif work["free"] < needs.checkpoint_bytes:
            what = f"{free}, but a checkpoint takes {size(needs.checkpoint_bytes)}"
            yield Finding((host.name,), what, fix)
        elif work["free"] < total:
            what = f"{free}, but {needs.checkpoints} checkpoints take {size(total)}"
            yield warning(host.name, what, f"{fix}, or lower checkpoint.keep")


def _gpus(host: Host, _driver: Host, needs: Needs) -> Iterator[Finding]:
    fix = "install the driver of NVIDIA and torch for CUDA there, or write scaling.gpu=false"
    if isinstance(host.devices, M2FError):
        what = f"torch does not answer: {host.devices.problem.what}"
        yield Finding((host.name,), what, "correct the environment of the host")
    elif host.devices and needs.gpu:
        gpus = host.devices["gpus"]
        if not gpus:
            yield Finding((host.name,), f"torch {host.devices['torch']} sees no GPU", fix)
        elif len(gpus) < host.gpus:
            what = f"Ray has {host.gpus} GPUs there, but torch sees {len(gpus)}"
            yield Finding((host.name,), what, "start Ray there with the number of working GPUs")
        for index, gpu in enumerate(gpus):
            if gpu["free"] < 0.9 * gpu["memory"]:
                what = f"GPU {index} has only {size(gpu['free'])} of {size(gpu['memory'])} free"
                yield warning(host.name, what, "end what else uses it (nvidia-smi lists it)")


def _kinds(hosts: Sequence[Host]) -> Iterator[Finding]:
    """Compare the GPUs of the hosts with each other."""
    answers = {host.name: host.devices for host in hosts if isinstance(host.devices, dict)}
    kinds = {name: sorted({gpu["name"] for gpu in d["gpus"]}) for name, d in answers.items()}
    nccl = {name: devices["nccl"] for name, devices in answers.items() if devices["nccl"]}
    if len({kind for found in kinds.values() for kind in found}) > 1:
        listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in kinds.items() if found)
        what = f"the GPUs differ, and the slowest sets the pace ({listed})"
        yield Finding(tuple(kinds), what, "use hosts with the same GPUs", "warning")
    if len(set(nccl.values())) > 1:
        listed = "; ".join(f"{name}: {version}" for name, version in nccl.items())
        yield Finding(tuple(nccl), f"the versions of NCCL differ ({listed})", SAME_ENVIRONMENT)


def size(count: float) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / 2**20:.3g} MiB"
