"""`train`: one run under Ray Train, started, followed and started again until it is done."""

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from jobs import config as configs
from jobs.check import check
from jobs.config import Config
from jobs.errors import RunFailed
from jobs.follow import Follower
from jobs.on_ray import python_path
from pipeline.data.store import Store
from pipeline.run.checkpoint import committed, step_of
from pipeline.run.folder import CHECKPOINTS, SUMMARY
from pipeline.run.track import EVENTS
from shards.errors import DataError, UsageError
from shards.files import file_lock, write_json
from shards.jsonl import append, rows

MAX_STARTS_AT_ONE_STEP = 3
MAY_CHANGE = (
    *("trainer.steps", "tracking.", "scaling.", "failure."),
    *("data.loader_workers", "data.cache.", "data.max_damaged"),
)

# Ray reads these once; a user's own values win.
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",  # a cluster of one machine, bound to it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without a GPU sees none
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # training is what this machine is for
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
    "HF_HUB_OFFLINE": "1",  # weights are named by folder; nothing is fetched while training
}


def train(preset: str, overrides: list[str], runs: Path = configs.RUNS) -> Path:
    """Train the preset in runs/<name>/, or go on there. Returns the run folder.

    Raises UsageError (exit 2) and DataError (exit 3) before anything is started; RuntimeError
    (exit 1) if the workers fail for good.
    """
    config = configs.load(preset, overrides)
    folder = (runs / config.name).absolute()
    stores = check(config, fresh=not committed(folder / CHECKPOINTS))
    with _lock(folder):
        if not _open(folder, config, stores):
            return folder
        with Follower(folder, config.trainer.steps):
            _fit(config, folder)
    print(f"done: {folder / SUMMARY}")
    return folder


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the run: two drivers in one folder would train over each other."""
    fix = "name another run: name=NAME"
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(file_lock(folder / ".lock", wait=False))
        except OSError as error:
            raise UsageError(str(error.strerror), where=folder, fix=fix) from error
        if not held:
            raise UsageError("the run is being trained by another command", where=folder, fix=fix)
        yield


def _open(folder: Path, config: Config, stores: tuple[list[Store], Store]) -> bool:
    """Write a new run's config, or hold an old one against it. False if the run is finished."""
    train, val = stores
    prints = [store.manifest.fingerprint for store in train]
    data = {"train": prints if len(prints) > 1 else prints[0], "val": val.manifest.fingerprint}
    written = folder / "config.yaml"
    if written.exists():
        # DeepSpeed's own checkpoints, those of stage 3, are for one number of workers
        fixed = ("scaling.",) if config.zero.stage == 3 else ()
        may_change = tuple(key for key in MAY_CHANGE if key not in fixed)
        changed = configs.differences(configs.load_run(folder), config, may_change)
        before = configs.load_environment(folder)["data"]
        changed += [f"the shards of data.{key}" for key in data if before[key] != data[key]]
        if changed:
            raise UsageError(
                f"{folder} was started with other settings ({'; '.join(changed)}); "
                "give those, or another name=NAME"
            )
        whole = committed(folder / CHECKPOINTS)
        finished = [row["step"] for row in rows(folder / EVENTS) if row["event"] == "finish"]
        if finished and max(finished) >= config.trainer.steps:
            print(f"{folder} is finished ({max(finished)} steps); for more: trainer.steps=N")
            return False
        if whole:
            print(f"{folder}: going on from step {step_of(whole[0])}")
    elif any(path.name != ".lock" for path in folder.iterdir()):
        raise UsageError(f"{folder} exists and is not a run; name another: name=NAME")
    write_json(folder / "environment.json", {
        "data": data,
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {d.name: d.version for d in distributions()},
    })  # fmt: skip
    configs.save(config, written)
    return True


def _fit(config: Config, folder: Path) -> None:
    """Run the workers on a Ray of our own on this machine."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = torch.cuda.is_available() if config.scaling.gpu is None else config.scaling.gpu
    workers = config.scaling.workers
    cpus_each = 1 + config.data.loader_workers
    threads = max(1, (os.cpu_count() or 1) // workers)
    print(
        f"{workers} workers, {threads} threads each of {os.cpu_count()} cores; "
        f"Ray is told of {workers * cpus_each} CPUs; {'GPU' if use_gpu else 'no GPU'}"
    )
    launch = f"{time.time():.3f}"
    ray.init(
        address="local",
        num_cpus=workers * cpus_each,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
    )
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "config": configs.to_dict(config),
            "folder": str(folder),
            "threads": threads,
            "launch": launch,
        },
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus_each}
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=config.failure.max_restarts),
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=600),
    )
    try:
        outcome: Any = trainer.fit().return_value
    except ray.train.TrainingFailedError:
        outcome = "failed"
    finally:
        ray.shutdown()
    if outcome != "done":
        _raise_last_failure(folder, launch)


def _work(job: dict[str, Any]) -> str:
    """One worker's life: train, or leave a failure in events.jsonl for the driver to read.

    Ray restarts after any failure. Workers that keep failing at one step end the run instead.
    """
    from pipeline.train import train as train_worker

    folder = Path(job["folder"])
    torch.set_num_threads(job["threads"])
    starts = [
        row["step"]
        for row in rows(folder / EVENTS)
        if row["event"] == "start" and row["launch"] == job["launch"]
    ]
    last = starts[-MAX_STARTS_AT_ONE_STEP:]
    if len(last) == MAX_STARTS_AT_ONE_STEP and len(set(last)) == 1:
        return "crash loop"
    try:
        train_worker(configs.merge(job["config"], []), folder, job["launch"])
    except Exception as error:
        append(folder / EVENTS, {
            "event": "failure",
            "time": time.time(),
            "launch": job["launch"],
            "rank": int(os.environ["RANK"]),
            "kind": type(error).__name__,
            "text": _text(error),
        })  # fmt: skip
        raise
    return "done"


def _text(error: Exception) -> str:
    """What went wrong. Of an error from a loader process, torch's text is a whole traceback."""
    text = str(error).strip()
    if "in DataLoader worker process" in text.partition("\n")[0]:
        return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    return text


def _raise_last_failure(folder: Path, launch: str) -> None:
    failures = [
        row
        for row in rows(folder / EVENTS)
        if row["event"] == "failure" and row["launch"] == launch
    ]
    kinds = {"DataError": DataError, "UsageError": UsageError}
    for failure in failures:
        if failure["kind"] in kinds:
            raise kinds[failure["kind"]](failure["text"])
    cause = f"{failures[-1]['kind']}: {failures[-1]['text']}" if failures else "workers died"
    raise RunFailed(f"{folder.name} failed for good: {cause}; see {folder / EVENTS}")
