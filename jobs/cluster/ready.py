"""The `check` command: whether a config can be trained, and what would be used."""

import dataclasses
import platform
from collections.abc import Sequence
from typing import Any

from jobs.check import check, load, uses_gpu
from jobs.cluster.findings import Finding, merged, refuse, report, to_json
from jobs.cluster.judge import size
from jobs.cluster.needs import Needs, needs_of
from jobs.cluster.preflight import ask_cluster, ask_here
from jobs.cluster.ray_cluster import Node
from jobs.cluster.target import Target
from jobs.config import Config
from jobs.stored import Home
from jobs.worker import threads_per_worker
from pipeline.data.split import BatchSplit
from shards.errors import M2FError

PATIENCE = 3  # of `train`, which must not fail because a host is busy


@dataclasses.dataclass(frozen=True)
class Readiness:
    """Whether a config can be trained.

    Attributes:
        findings: What is wrong, errors first.
        needs: What the run needs.
    """

    findings: list[Finding]
    needs: Needs

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"findings": to_json(self.findings), "needs": dataclasses.asdict(self.needs)}


def ready(preset: str, overrides: list[str], target: Target) -> Readiness:
    """Check a config, the data, the weights, and all hosts, and print what is wrong.

    Args:
        preset: Name of a preset, or path of a YAML file.
        overrides: Settings as `key=value`.
        target: This machine, or a Ray cluster.

    Raises:
        UsageError: The config is wrong, or the cluster cannot be joined.
    """
    config, cluster = load(preset, overrides, target)
    needs = needs_of(config, uses_gpu(config, cluster))
    print(summary(config, needs, is_here=cluster is None))
    fresh, findings = True, []
    try:
        home = Home.of(config)
        home.take()
        fresh = home.is_fresh
        check(config, fresh, cluster)
    except M2FError as error:
        findings.append(Finding.of(platform.node(), error))
    if target.cluster and cluster is not None:
        findings += ask_cluster(config, fresh, needs, target.cluster, cluster)
    else:
        findings += ask_here(config, fresh, needs)
    result = Readiness(merged(findings), needs)
    report(result.findings)
    return result


def require_ready(config: Config, fresh: bool, address: str, cluster: Sequence[Node]) -> None:
    """Check the hosts of a cluster before a run reserves workers there.

    Args:
        config: The config of the run.
        fresh: Whether the run starts at step 0.
        address: The address of the cluster.
        cluster: Its nodes.

    Raises:
        UsageError: Training cannot work there. Everything that is wrong has been printed.
        DataError: The same, and only the data is wrong.
    """
    needs = needs_of(config, uses_gpu(config, cluster))
    found = ask_cluster(config, fresh, needs, address, cluster, PATIENCE)
    findings = merged(found)
    report(findings)
    refuse(findings)


def summary(config: Config, needs: Needs, is_here: bool) -> str:
    """Return in one line what training would use.

    Args:
        config: The config of the run.
        needs: What the run needs.
        is_here: Whether all workers run on this machine.
    """
    batch, threads = config.batch, config.scaling.threads
    split = BatchSplit(batch.size, batch.micro, needs.workers)
    if is_here:
        threads = threads_per_worker(threads, needs.workers)
    return (
        f"workers: {needs.workers} (CPUs of each: {needs.cpus}, GPUs of each: {int(needs.gpu)}, "
        f"threads of each: {threads or 'its share of the cores of its node'}); "
        f"batch: {batch.size} images in {split.micro_steps} passes of each worker, "
        f"{batch.micro} images at most{'' if split.is_even else ', unevenly'}; "
        f"network: {needs.parameters / 1e6:.1f} M parameters; memory of each worker: about "
        f"{size(needs.step_bytes)} for a step, {size(needs.processes_bytes)} for its processes; "
        f"checkpoint: {size(needs.checkpoint_bytes)}"
    )
