"""Check a config against the machines, the data, and the weights before any worker starts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from jobs import config as configs
from jobs.cluster.ray_cluster import Node, fitting, nodes
from jobs.cluster.target import Target
from jobs.config import Config
from jobs.inputs import check_exist, warn_if_unlearnable, warn_of_other_weights
from jobs.worker import cpus_per_worker
from model.heads import build
from model.weights.load import fit, fit_backbone
from pipeline.data.stages import load_stage
from pipeline.data.store import Store
from pipeline.data.stream import order_of, train_sets
from pipeline.run.class_match import match_classes
from pipeline.run.restore import initial_weights
from shards.errors import UsageError
from shards.files import is_url
from shards.format.taxonomy import Taxonomy


def load(preset: str, overrides: list[str], target: Target) -> tuple[Config, Sequence[Node] | None]:
    """Return the config that is trained at a target, and the nodes there; None for this machine.

    Args:
        preset: Name of a preset, or path of a YAML file.
        overrides: Settings as `key=value`.
        target: This machine, or a Ray cluster.

    Raises:
        UsageError: The config is wrong, or the cluster cannot be joined.
    """
    cluster = nodes(target.cluster) if target.cluster else None
    gpus = None if cluster is None else int(sum(node.gpus for node in cluster))
    config = configs.load(preset, overrides, gpus)
    warn_of_other_weights(preset, config)
    return config, cluster


def check(
    config: Config, fresh: bool = True, cluster: Sequence[Node] | None = None
) -> tuple[list[Store], Store]:
    """Return the training sets and the validation set of a config that can be trained.

    Args:
        config: The config.
        fresh: Whether the run starts at step 0. A run that resumes from its checkpoint does not
            need the weights that it started from.
        cluster: The nodes of the Ray cluster that trains; None if this machine does.

    Raises:
        UsageError: Something does not fit. The error names the key, the value, and the fix.
        DataError: A shard set is incomplete.
    """
    if config.guard.policy == "rewind" and is_url(config.runs):
        raise UsageError(
            "a checkpoint on storage cannot be taken back",
            where=f"guard.policy=rewind with runs={config.runs}",
            fix="give runs= a folder that all nodes share, or another policy",
        )
    check_exist(config)
    if cluster is None:
        _check_gpus(config.scaling.gpu, config.scaling.workers or 1)
    else:
        check_fits(config, cluster, config.fewest_workers)
    for name in config.data.stages:
        load_stage(name)
    train, val = check_data(config)
    try:
        _check_model(config, val.manifest.taxonomy, fresh)
    except ValueError as error:
        raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
    warn_if_unlearnable(config, train)
    return train, val


def _check_gpus(gpu: bool | None, workers: int) -> None:
    gpus = torch.cuda.device_count()
    if gpu and gpus == 0:
        what, fix = "this machine has no GPU that torch can use", "write scaling.gpu=false"
        raise UsageError(what, where="scaling.gpu=true", fix=fix)
    if gpu is not False and 0 < gpus < workers:
        what = f"this machine has only {gpus} of the GPUs that {workers} workers need"
        fix = f"write scaling.workers={gpus} or scaling.gpu=false"
        raise UsageError(what, where=f"scaling.workers={workers}", fix=fix)


def uses_gpu(config: Config, cluster: Sequence[Node] | None) -> bool:
    """Return whether each worker has a GPU, on this machine or on the nodes of a cluster."""
    if config.scaling.gpu is not None:
        return config.scaling.gpu
    return torch.cuda.is_available() if cluster is None else any(node.gpus for node in cluster)


def check_fits(config: Config, cluster: Sequence[Node], workers: int) -> None:
    """Check that the nodes of a cluster have the GPUs and CPUs that the workers reserve."""
    use_gpu = uses_gpu(config, cluster)
    key = "workers" if config.scaling.min_workers is None else "min_workers"
    where = f"scaling.{key}={workers}"
    if use_gpu and (gpus := int(sum(node.gpus for node in cluster))) < workers:
        what = f"the cluster has only {gpus} of the GPUs that {workers} workers need"
        raise UsageError(what, where=where, fix=f"write at most {gpus}, or scaling.gpu=false")
    cpus = cpus_per_worker(config)
    if (most := fitting(cluster, cpus, use_gpu)) < workers:
        known = ", ".join(sorted(f"{node.host}: {node.cpus:g}" for node in cluster))
        raise UsageError(
            f"the CPUs of the cluster ({known}) suffice for {most} workers that reserve {cpus} "
            "each on one node",
            where=where,
            fix="lower it or data.loader_workers (a worker reserves one CPU more than that)",
        )


def check_data(config: Config) -> tuple[list[Store], Store]:
    """Open the shard sets of a config, and check that they serve its task and fit each other."""
    train = _opened("data.train", lambda: train_sets(config.data))
    val = _opened("data.val", lambda: Store(config.data.val, cache=config.data.cache))
    for key, store in (*(("data.train", store) for store in train), ("data.val", val)):
        store.check_shards()
        where, tasks = f"{key}={store.location}", store.manifest.tasks
        if len(store) == 0:
            raise UsageError("the set holds no sample", where=where, fix="build it again")
        if config.task not in tasks:
            fix = f"write task={tasks[0]}, or build the set from data with the truth for it"
            what = f"the set serves {', '.join(tasks)}, not {config.task}"
            raise UsageError(what, where=where, fix=fix)
    if difference := train[0].manifest.taxonomy.difference(val.manifest.taxonomy):
        raise UsageError(
            f"data.train={train[0].location} and data.val={val.location} have different classes: "
            f"{difference}",
            fix="give two splits of one data set, built by the same version",
        )
    order_of(train, config.data, config.seed)
    return train, val


def _opened(key: str, sets: Callable[[], Any]) -> Any:
    """Open shard sets and name their setting in an error."""
    try:
        return sets()
    except UsageError as error:
        where = error.problem.where
        raise error.at(f"{key}={where}" if where else key) from error


def _check_model(config: Config, taxonomy: Taxonomy, fresh: bool) -> None:
    settings, init_from = config.model, config.model.init_from
    # only weights of transformers need memory
    with torch.device("meta" if settings.weights_folder == "none" else "cpu"):
        model = build(settings, len(taxonomy))
    if settings.weights_file != "none" and fresh:
        fit_backbone(model, settings.weights_file)
    if init_from != "none" and fresh:
        weights_of_run = initial_weights(init_from, config.task)
        fit(model, weights_of_run, match_classes(taxonomy, weights_of_run))
