"""Check all hosts of a run before workers are reserved, and report everything at once."""

import contextlib
import importlib.metadata
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs.cluster import probe
from jobs.cluster.findings import Finding
from jobs.cluster.judge import Host, judge
from jobs.cluster.marker import marker
from jobs.cluster.needs import Needs
from jobs.cluster.package import requirements
from jobs.cluster.prober import Prober
from jobs.cluster.ray_cluster import Node, Variables, join
from jobs.cluster.survey import EXAMINE_S, LOOK_S, PROGRESS, Survey, names_of, survey
from jobs.config import Config
from jobs.ray_session import Message, session
from pipeline.run.folder import CHECKPOINTS, choose_checkpoint
from pipeline.run.storage import cache_folder
from shards.errors import Failed, M2FError, UsageError
from shards.files import is_url

LIMIT_S = 55


def ask_cluster(
    config: Config,
    fresh: bool,
    needs: Needs,
    address: str,
    nodes: Sequence[Node],
    patience: float = 1,
) -> list[Finding]:
    """Ask the nodes of a Ray cluster that can get workers, and return what is wrong with them.

    Args:
        config: The config of the run.
        fresh: Whether the run starts at step 0 and needs the weights that it starts from.
        needs: What the run needs.
        address: The address of the cluster.
        nodes: Its nodes.
        patience: Factor of all time limits.

    Raises:
        UsageError: The cluster cannot be joined.
        Failed: Ray died.
    """
    able = [node for node in nodes if node.capacity(needs.cpus, needs.gpu)] or list(nodes)
    able.sort(key=lambda node: node.host)  # Ray lists them in the order of their random ids
    driver = platform.node()
    job = Survey(
        _plan(config, fresh, patience),
        needs,
        tuple(config.data.stages),
        tuple(able),
        driver,
        time.monotonic() + LIMIT_S * patience,
        patience,
    )
    with contextlib.ExitStack() as stack:
        findings = []
        try:
            name = stack.enter_context(marker(config.runs))
            job = replace(job, plan=replace(job.plan, marker=name))
        except M2FError as error:
            error = error.at(f"runs={config.runs}")
            findings = [Finding.of(driver, error, "give another location: runs=LOCATION")]
        return findings + _run(job, address)


def ask_here(config: Config, fresh: bool, needs: Needs) -> list[Finding]:
    """Ask this machine alone, where all workers are to run."""
    plan, prober = _plan(config, fresh), Prober(Variables())
    name = platform.node()
    try:
        answers = prober.look(plan, name)
        devices, stages = prober.examine(config.data.stages, EXAMINE_S)
        host = Host(name, answers, devices, stages, workers=needs.workers)
    finally:
        prober.end(plan, name)
    return judge([host], host, needs)


def _plan(config: Config, fresh: bool, patience: float = 1) -> probe.Plan:
    key, weights = _weights(config)
    return probe.Plan(
        packages=dependencies(),
        sets={config.data.val: "data.val"} | dict.fromkeys(config.data.train, "data.train"),
        cache=config.data.cache.folder,
        runs=config.runs,
        work=cache_folder() if is_url(config.runs) else config.runs,
        weights=weights if fresh and weights != "none" and not is_url(weights) else "",
        weights_key=key,
        limit_s=LOOK_S * patience,
    )


def _weights(config: Config) -> tuple[str, str]:
    """Return the setting of the weights that a run starts from, and their file or folder."""
    model = config.model
    if model.init_from == "none":
        return "model.weights", model.weights
    weights = Path(model.init_from)
    with contextlib.suppress(UsageError):  # `check` reports it
        if (weights / CHECKPOINTS).is_dir():
            weights = choose_checkpoint(weights, None, config.task)
    return "model.init_from", str(weights)


def dependencies() -> tuple[str, ...]:
    """Return the names of the packages that pyproject.toml lists and this environment has."""
    names = [requirement.name for requirement in requirements()[1]]
    installed = {dist.name.lower() for dist in importlib.metadata.distributions()}
    return tuple(name for name in names if name.lower() in installed)


def _run(job: Survey, address: str) -> list[Finding]:
    """Run the survey in a process below this one, which ends with it or at the deadline."""
    start = partial(join, address=address)
    step = "joining the cluster"
    with session(partial(survey, job), start) as ray:
        shown = 0
        while ray.wait() and ray.message.state != "ended" and time.monotonic() < job.deadline + 3:
            lines = _lines(ray.folder / PROGRESS)
            for step in lines[shown:]:
                print(f"preflight: {step}", flush=True)
            shown = len(lines)
        message: Message = ray.message
    if message.error:
        raise message.error
    if message.state == "ended":
        return message.text
    if time.monotonic() < job.deadline:
        raise Failed(f"Ray did not start ({message.text})", fix="run the command again")
    limit = LIMIT_S * job.patience
    what = f"preflight was not done after {limit:g} s; its last step was: {step}"
    hosts = tuple(names_of(job.nodes))
    return [Finding(hosts, what, "look whether one of the hosts or the storage hangs")]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
