"""Ask all nodes of a cluster about themselves at the same time, and let them meet."""

import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.cluster import marker, probe, prober, reach
from jobs.cluster.findings import Finding
from jobs.cluster.judge import Host, judge
from jobs.cluster.marker import unseen
from jobs.cluster.needs import Needs
from jobs.cluster.package import files
from jobs.cluster.ray_cluster import Node, Variables
from shards.errors import Failed

PROGRESS = "progress"
START_S = 8  # for Ray to start a process on a node
LOOK_S, EXAMINE_S, MEET_S = 15, 22, 12
FIREWALL = "let hosts connect to each other on all TCP ports, and look for other addresses"


@dataclass(frozen=True)
class Survey:
    """What is asked.

    Attributes:
        plan: What each host looks at.
        needs: What the run needs.
        stages: The stages that a worker imports.
        nodes: The nodes that can get workers.
        driver: Name of this host.
        deadline: When all has to be over, by the monotonic clock.
        patience: Factor of all time limits.
    """

    plan: probe.Plan
    needs: Needs
    stages: tuple[str, ...]
    nodes: tuple[Node, ...]
    driver: str
    deadline: float
    patience: float

    def left(self, limit_s: float, reserve_s: float = 0) -> float:
        """Return the seconds that a step may take: `limit_s` times the patience, or less."""
        left = self.deadline - time.monotonic()
        return max(1, min(limit_s * self.patience, left - reserve_s))


class Team:
    """The probers on the nodes.

    Attributes:
        actors: Those that have not failed, by the name of the host.
        findings: Why the others have failed.
    """

    def __init__(self, actors: Mapping[str, Any]):
        self.actors, self.findings = dict(actors), []

    def ask(self, calls: Mapping[str, tuple[str, Sequence[Any]]], limit_s: float) -> dict[str, Any]:
        """Call a method on several hosts at the same time and return their answers.

        A host without an answer leaves the team.

        Args:
            calls: The method and its arguments by host.
            limit_s: Time after which a host has not answered.
        """
        import ray

        sent = {
            getattr(self.actors[host], method).remote(*arguments): host
            for host, (method, arguments) in calls.items()
            if host in self.actors
        }
        if not sent:
            return {}
        ready, late = ray.wait(list(sent), num_returns=len(sent), timeout=limit_s)
        answers = {}
        for reference in ready:
            try:
                answers[sent[reference]] = ray.get(reference)
            except Exception as error:
                self._lose(sent[reference], _reason(error))
        for reference in late:
            self._lose(sent[reference], f"Ray gave no answer from there in {limit_s:.0f} s")
        return answers

    def _lose(self, host: str, reason: str) -> None:
        if self.actors.pop(host, None):
            fix = "look at the logs of Ray there, and start Ray there again"
            self.findings.append(Finding((host,), reason, fix))


def _reason(error: Exception) -> str:
    """Return the last line of an error of Ray, which holds the cause below a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the probe does not run there ({lines[-1] if lines else type(error).__name__})"


def survey(job: Survey, private: Path) -> list[Finding]:
    """Return what is wrong with the nodes. It runs under Ray, in the child of `session`."""

    def say(text: str) -> None:
        with (private / PROGRESS).open("a") as file:
            file.write(f"{text}\n")

    names = names_of(job.nodes)
    say(f"checking {len(names)} hosts: {', '.join(names)}")
    team = Team(_actors(names))
    hosts, driver = _look(job, team, names)
    say(f"{len(team.actors)} hosts have answered; comparing their clocks")
    _compare_clocks(job, team, hosts)
    findings = judge(list(hosts.values()), driver, job.needs)
    say("connecting the hosts")
    gpu = job.needs.gpu and all(host.has_gpu for host in hosts.values())
    findings += _connect(job, team, {name: names[name].address for name in team.actors}, gpu)
    wrote = [name for name, host in hosts.items() if host.facts("runs")]
    findings += unseen(job.plan.runs, job.plan.marker, wrote, job.driver)
    team.ask({name: ("end", (job.plan, name)) for name in team.actors}, job.left(5))
    return findings + team.findings


def names_of(nodes: Sequence[Node]) -> dict[str, Node]:
    """Return the nodes by hostname, with the address if two have the same one."""
    hosts = [node.host for node in nodes]
    return {
        node.host if hosts.count(node.host) == 1 else f"{node.host} ({node.address})": node
        for node in nodes
    }


def _actors(names: Mapping[str, Node]) -> dict[str, Any]:
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for module in (marker, probe, prober, reach):  # a node may have another version of them
        cloudpickle.register_pickle_by_value(module)
    ids = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    actor = ray.remote(prober.Prober)
    variables = Variables.forwarded()
    return {
        name: actor.options(
            num_cpus=0,
            max_concurrency=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(ids[node.address], soft=False),
        ).remote(variables)
        for name, node in names.items()
        if node.address in ids
    }


def _look(job: Survey, team: Team, names: Mapping[str, Node]) -> tuple[dict[str, Host], Host]:
    """Return the answers of the hosts, and those of the driver."""
    plans = {name: replace(job.plan, address=node.address) for name, node in names.items()}
    with ThreadPoolExecutor(3) as threads:
        here = threads.submit(probe.look, replace(job.plan, marker=""), job.driver)
        calls = {name: ("look", (plans[name], name)) for name in plans}
        looks = threads.submit(team.ask, calls, job.left(LOOK_S + START_S))
        calls = dict.fromkeys(plans, ("examine", (job.stages, job.left(EXAMINE_S))))
        examined = threads.submit(team.ask, calls, job.left(EXAMINE_S + START_S))
    hosts = {}
    for name, answers in looks.result().items():
        node = names[name]
        devices, stages = examined.result().get(name, (None, ()))
        workers = min(job.needs.workers, node.capacity(job.needs.cpus, job.needs.gpu))
        hosts[name] = Host(name, answers, devices, stages, int(node.gpus), workers)
    driver = Host(job.driver, here.result())
    if code := driver.facts("code"):
        sent = {path.as_posix() for path in files()}  # the files that git ignores are not
        driver.answers["code"] = {name: code[name] for name in code.keys() & sent}
    return hosts, driver


def _compare_clocks(job: Survey, team: Team, hosts: Mapping[str, Host]) -> None:
    for name, host in hosts.items():
        before, started = time.time(), time.monotonic()
        answer = team.ask({name: ("now", ())}, job.left(5))
        trip = time.monotonic() - started
        if name in answer:
            host.clock_s = answer[name] - (before + trip / 2)
            host.clock_error_s = trip / 2


def _connect(job: Survey, team: Team, addresses: Mapping[str, str], gpu: bool) -> list[Finding]:
    """Return the pairs of hosts that cannot connect, or cannot add tensors."""
    ports = team.ask(
        {name: ("serve", (address,)) for name, address in addresses.items()}, job.left(10)
    )
    servers = {name: (addresses[name], port) for name, port in ports.items()}
    others = {
        name: {host: server for host, server in servers.items() if host != name} for name in servers
    }
    blocked = team.ask({name: ("reach", (others[name],)) for name in others}, job.left(20, 5))
    findings = [
        Finding((name, host), _blocked(name, host, servers[host], reason), FIREWALL)
        for name, failures in blocked.items()
        for host, reason in failures.items()
    ]
    return findings or _meet(job, team, addresses, gpu)


def _blocked(name: str, host: str, server: tuple[str, int], reason: str) -> str:
    address, port = server
    return f"{name} cannot connect to {host} ({address}, port {port}): {reason}"


def _meet(job: Survey, team: Team, addresses: Mapping[str, str], gpu: bool) -> list[Finding]:
    """Let all hosts add a tensor, and if that fails, every pair of them while there is time."""
    everybody = list(team.actors)
    if len(everybody) < 2 or not (failed := _group(job, team, addresses, everybody, gpu)):
        return []
    pairs = [tuple(everybody)]
    if len(everybody) > 2:
        pairs = list(itertools.combinations(everybody, 2))
    library = "NCCL" if gpu else "gloo"
    findings = []
    for pair in pairs:
        if len(everybody) > 2:
            if job.left(MEET_S) < MEET_S / 3:
                break
            failed = _group(job, team, addresses, pair, gpu)
        if failed:
            what = f"{' and '.join(pair)} cannot add a tensor with {library}: {failed}"
            interfaces = f"{library.upper()}_SOCKET_IFNAME"
            fix = f"unset {interfaces}, or name the interface of each host's address in it"
            findings.append(Finding(pair, what, fix))
    return findings


def _group(
    job: Survey, team: Team, addresses: Mapping[str, str], members: Sequence[str], gpu: bool
) -> str:
    """Let hosts add a tensor and return why they cannot; "" if they can."""
    first = members[0]
    ports = team.ask({first: ("free_port", (addresses[first],))}, job.left(5))
    if first not in ports:
        return "no port is free"
    limit = job.left(MEET_S, 3)
    arguments = {
        "world": len(members),
        "host": addresses[first],
        "port": ports[first],
        "gpu": gpu,
        "limit_s": limit,
    }
    calls = {
        name: ("ask", ("meet", arguments | {"rank": rank, "address": addresses[name]}, limit + 2))
        for rank, name in enumerate(members)
    }
    answers = team.ask(calls, limit + 4)
    reasons = [f"{name}: {a.problem.what}" for name, a in answers.items() if isinstance(a, Failed)]
    if not reasons and len(answers) < len(members):
        return "no answer"
    return "; ".join(reasons)
