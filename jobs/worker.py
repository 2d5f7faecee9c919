"""Workers: the processes that Ray Train starts to train, score, or predict together."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from jobs import config as configs
from jobs import memory
from jobs.cluster.ray_cluster import Variables, check_shared
from jobs.config import Config
from jobs.rendezvous import join_group
from pipeline.distributed import call_on_all_ranks
from pipeline.run import eventlog, events
from pipeline.run.folder import CONFIG
from pipeline.run.restarts import is_crash_loop
from pipeline.run.start_parts import StartParts
from pipeline.run.working_copy import WorkingCopy
from pipeline.step import cpu_helper
from shards.errors import Failed, M2FError, UsageError
from shards.scratch import name_semaphores, private_folder

if TYPE_CHECKING:
    from pipeline.run.fault_schedule import Schedule


ELASTIC_START_S = "10"  # for the placement of a range of workers; then another number is tried


@dataclass(frozen=True)
class Job:
    """The input of a worker.

    Attributes:
        config: The run's config as plain data.
        folder: The run folder.
        launch: Identifier of this command, which the restarts of its workers share.
        workers: Number of workers.
        use_gpu: Whether each worker has a GPU.
        is_spread: Whether the workers are on the nodes of a cluster, instead of this machine.
        variables: Environment variables that they need there.
        url: The run on storage; None if it is in `folder`, which all workers share.
        owner: The owner in the run's lease.
        faults: Faults to inject on purpose.
        began: When the command started, in seconds since 1970; None if these workers follow others.
        fewest: Smallest number of workers; None if it is `workers`.
    """

    config: dict[str, Any]
    folder: Path
    launch: str
    workers: int = 1
    use_gpu: bool = False
    is_spread: bool = False
    variables: Variables = field(default_factory=Variables)
    url: str | None = None
    owner: str = ""
    faults: "Schedule | None" = None
    began: float | None = None
    fewest: int | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers follows what fits on the cluster."""
        return self.is_spread and self.fewest is not None and self.fewest < self.workers

    @property
    def count(self) -> str:
        """The number of workers, or its range, for people."""
        return f"{self.fewest} to {self.workers}" if self.is_elastic else f"{self.workers}"

    @property
    def records(self) -> Path:
        """The folder on this host where its processes record what happens to the run."""
        return self.copy.folder if self.copy else self.folder

    @property
    def copy(self) -> WorkingCopy | None:
        """What stands for a run on storage on this host."""
        return WorkingCopy(self.url, self.owner) if self.url else None


Work = Callable[[Config, Job], Any]
Body = Callable[[Config, Job, Path | None, StartParts], Any]


def cpus_per_worker(config: Config) -> int:
    """Return the number of CPUs that a worker and its loader processes reserve in Ray."""
    return 1 + config.data.loader_workers


def threads_per_worker(threads: int | None, workers: int) -> int:
    """Return the number of torch threads in each worker of a node.

    Args:
        threads: The setting; None shares the cores of this node.
        workers: Number of workers on this node.
    """
    return threads or max(1, len(os.sched_getaffinity(0)) // workers)


def call_workers(work: Work, config: Config, job: Job, private: Path) -> Any:
    """Call a function once in each worker, in a process group of all; return rank 0's result.

    Args:
        work: The function; its arguments are the config and the job.
        config: The run's config.
        job: The input of the workers.
        private: As for `fit`.

    Raises:
        M2FError: What the first worker raised.
    """
    from ray.train import TrainingFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    before = memory.kills()
    try:
        return fit(config, job, partial(_call, work), private)
    except WorkerGroupError as error:
        causes = [_cause(failure) for _, failure in sorted(error.worker_failures.items())]
        own = next((cause for cause in causes if isinstance(cause, M2FError)), None)
        text = f"{type(causes[0]).__name__}: {causes[0]}".partition("\n")[0]
        if full := memory.failure(error.worker_failures, before, job.launch):
            text = full.text
        raise own or Failed(f"a worker failed: {text}") from error
    except TrainingFailedError as error:
        raise Failed(f"the workers did not start: {error}") from error


def _cause(error: Exception) -> BaseException:
    """Return the error that a worker raised, without what Ray puts around it."""
    inner = getattr(error, "_base_exc", None) or error.__cause__ or error
    return getattr(inner, "cause", None) or inner


def fit(config: Config, job: Job, body: Body, private: Path, restarts: int | None = None) -> Any:
    """Run `body` in workers that Ray Train places, and return the result of rank 0.

    Args:
        config: The run's config.
        job: The input of the workers.
        body: What each worker does.
        private: A folder that only this user can open, where the workers of this machine find each
            other.
        restarts: Number of times that the workers of a run are restarted if one fails. None: they
            do not train, so that they are not restarted and record nothing.

    Raises:
        TrainingFailedError: They failed once more, or did not start.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.start_marks import StartMarks

    class NoStore(Backend):
        """Ray's backend would make the process group, with a store that listens to the network."""

        share_cuda_visible_devices = True

    class Torch(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return NoStore

    parts = StartParts(job.began)
    parts.end("command and Ray" if job.began else "teardown")
    records = None if restarts is None else job.records
    kind: type[TorchTrainer] = TorchTrainer
    workers: int | tuple[int, int] = job.workers
    if job.is_elastic:
        from jobs.elastic import ElasticTrainer

        kind, workers = ElasticTrainer, (job.fewest or 1, job.workers)
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", ELASTIC_START_S)
    placement = config.scaling.placement or ("pack" if job.use_gpu else "spread")
    trainer = kind(
        _work,
        train_loop_config={"job": job, "body": body, "private": private},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=job.use_gpu,
            resources_per_worker={"CPU": cpus_per_worker(config)},
            placement_strategy=placement.upper(),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(job.folder),
            failure_config=FailureConfig(max_failures=restarts or 0),
            callbacks=[StartMarks(parts, records, job.launch)],  # pyright: ignore[reportArgumentType]
        ),
        torch_config=Torch(),
    )
    return trainer.fit().return_value


def _work(arguments: dict[str, Any]) -> Any:
    """Prepare the process of a worker, and run its body."""
    from ray.train import get_context

    from jobs.start_marks import received

    parts = received()
    job: Job = arguments["job"]
    job.variables.set()
    config = configs.merge(job.config, [])
    here = get_context().get_local_world_size()
    torch.set_num_threads(threads_per_worker(config.scaling.threads, here))
    with _private_folder(job, arguments["private"]) as private:
        name_semaphores(private)
        return arguments["body"](config, job, None if job.is_spread else private, parts)


@contextlib.contextmanager
def _private_folder(job: Job, of_driver: Path) -> Iterator[Path]:
    """Yield the private folder of the driver, or one of this node's own if that is on another."""
    if job.is_spread:
        with private_folder() as own:
            yield own
    else:
        yield of_driver


def train_in_worker(
    config: Config, job: Job, private: Path | None, parts: StartParts
) -> str | M2FError:
    """Train in one worker. An error that ends it is recorded, so that the driver can read it.

    Ray restarts all workers after any failure. If the last starts of this command failed at the
    same step, this function returns without training, which ends the run. So does an error that
    another start would repeat, because it is returned by all workers.
    """
    from ray.train import get_context

    from pipeline.run.guard import Final  # with the network, whose import takes seconds
    from pipeline.train import train as train_worker

    parts.end("imports")
    copy, more, folder = job.copy, None, job.records
    if is_crash_loop(copy.history() if copy else eventlog.read(folder), job.launch):
        return "crash loop"
    try:
        if not job.use_gpu and not cpu_helper.is_compiled():  # once per node
            cpu_helper.compile_alone()
        join_group(job.use_gpu, config.failure.timeout_s, private)
        parts.end("process group")
        try:
            call_on_all_ranks(lambda: check_shared([] if copy else [folder / CONFIG]))
        except UsageError as error:
            return error
        eventlog.separate_hosts()
        with copy.kept(config) if copy else contextlib.nullcontext():
            if job.is_elastic:
                from jobs.elastic import MoreWorkers

                cpus, now = cpus_per_worker(config), dist.get_world_size()
                more = MoreWorkers(now, job.workers, cpus, job.use_gpu)
            is_done = train_worker(config, folder, job.launch, job.faults, parts, more)
        dist.destroy_process_group()
    except Exception as error:
        rank = get_context().get_world_rank()
        eventlog.append(folder, events.Failure.of(error, launch=job.launch, rank=rank))
        if copy:
            copy.send_log()
        if isinstance(error, Final):
            return error
        raise
    if is_done:
        return "done"
    return "resized" if more and more.count else "stopped"


def _call(work: Work, config: Config, job: Job, private: Path | None, _: StartParts) -> Any:
    """Call `work` in the process group of all workers."""
    join_group(job.use_gpu, config.failure.timeout_s, private)
    result = work(config, job)
    dist.destroy_process_group()
    return result
