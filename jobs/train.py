"""The `train` command: run the workers under Ray Train, and restart them if they fail."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs import config as configs
from jobs.check import check
from jobs.config import Config
from jobs.follow import Follower
from jobs.on_ray import python_path
from jobs.resume import open_run
from pipeline.run import eventlog, events
from pipeline.run.checkpoint import committed
from pipeline.run.folder import CHECKPOINTS, SUMMARY
from pipeline.run.restarts import is_crash_loop
from shards.errors import DataError, Failed, M2FError, UsageError
from shards.files import file_lock

# Ray and the libraries of its workers read these as they start. Values of the user take precedence.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # not needed: only this machine can connect
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hides the GPUs from a worker that reserves none
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # normal priority; Ray's default lowers it
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
    "HF_HUB_OFFLINE": "1",  # weights are in folders; training downloads nothing
}


def train(preset: str, overrides: list[str], runs: Path = configs.RUNS) -> Path:
    """Train a preset in runs/<name>/, or resume the run of that name.

    Args:
        preset: Name of a preset, or path of a YAML file.
        overrides: Settings as `key=value`.
        runs: The folder of all runs.

    Returns:
        The run folder.

    Raises:
        UsageError: The configuration cannot be trained.
        DataError: A shard set is damaged.
        Failed: The workers failed too often.
    """
    config = configs.load(preset, overrides)
    folder = (runs / config.name).absolute()
    stores = check(config, fresh=not committed(folder / CHECKPOINTS))
    with _lock(folder):
        if not open_run(folder, config, stores):
            return folder
        with Follower(folder, config.trainer.steps):
            _fit(config, folder)
    print(f"done: {folder / SUMMARY}")
    return folder


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the run folder, so that no second command trains the same run."""
    fix = "name another run: name=NAME"
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(file_lock(folder / ".lock", wait=False))
        except OSError as error:
            raise UsageError(str(error.strerror), where=folder, fix=fix) from error
        if not held:
            raise UsageError("the run is being trained by another command", where=folder, fix=fix)
        yield


def _fit(config: Config, folder: Path) -> None:
    """Train in the workers of a Ray instance that lives as long as this command."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.train import TrainingFailedError

    workers = config.scaling.workers
    assert workers is not None, "resolved by `configs.load`"
    use_gpu = torch.cuda.is_available() if config.scaling.gpu is None else config.scaling.gpu
    cpus = workers * _cpus_per_worker(config)
    threads = max(1, (os.cpu_count() or 1) // workers)
    print(
        f"{workers} workers with {threads} threads each on {os.cpu_count()} cores; "
        f"{cpus} CPUs reserved in Ray; {'GPU' if use_gpu else 'no GPU'}"
    )
    job = Job(configs.to_dict(config), folder, threads, launch=f"{time.time():.3f}")
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
    )
    try:
        outcome = _trainer(config, job, workers, use_gpu).fit().return_value
    except TrainingFailedError:
        outcome = "failed"
    finally:
        ray.shutdown()
    if outcome != "done":
        raise _failure(job)


def _trainer(config: Config, job: "Job", workers: int, use_gpu: bool) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": _cpus_per_worker(config)},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.folder),
            failure_config=FailureConfig(max_failures=config.failure.max_restarts),
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=600),
    )


def _cpus_per_worker(config: Config) -> int:
    return 1 + config.data.loader_workers


@dataclass(frozen=True)
class Job:
    """The input of a worker.

    Attributes:
        config: The run's config as plain data.
        folder: The run folder.
        threads: Number of torch threads in each worker.
        launch: Identifier of this command, which the restarts of its workers share.
    """

    config: dict[str, Any]
    folder: Path
    threads: int
    launch: str


def _work(arguments: dict[str, Job]) -> str:
    """Train in one worker. An error that ends it is recorded, so that the driver can read it.

    Ray restarts all workers after any failure. If the last starts of this command failed at the
    same step, this function returns without training, which ends the run.
    """
    from pipeline.train import train as train_worker

    job = arguments["job"]
    torch.set_num_threads(job.threads)
    if is_crash_loop(eventlog.read(job.folder), job.launch):
        return "crash loop"
    try:
        train_worker(configs.merge(job.config, []), job.folder, job.launch)
    except Exception as error:
        rank = int(os.environ["RANK"])
        eventlog.append(job.folder, events.Failure.of(error, launch=job.launch, rank=rank))
        raise
    return "done"


def _failure(job: Job) -> M2FError:
    """Return the error that the command ends with.

    It is the first error of a worker that the user can correct; otherwise the last error.
    """
    failures = eventlog.read_kind(job.folder, events.Failure)
    failures = [failure for failure in failures if failure.launch == job.launch]
    for failure in failures:
        for kind in (UsageError, DataError):
            if failure.exit_code == kind.exit_code:
                return kind(failure.what, where=failure.where, fix=failure.fix)
    cause = f"{failures[-1].kind}: {failures[-1].text}" if failures else "the workers died"
    log = job.folder / eventlog.EVENTS
    return Failed(f"the run failed: {cause}", where=job.folder.name, fix=f"see {log}")
