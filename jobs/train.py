"""The `train` command: run the workers under Ray Train, and restart them if they fail."""

import contextlib
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import config as configs
from jobs.check import check, load, uses_gpu
from jobs.cluster.ray_cluster import Node, Variables, join
from jobs.cluster.ready import require_ready
from jobs.cluster.target import HERE, Target
from jobs.config import Config
from jobs.follow import Follower
from jobs.interrupts import Preempted, handled, requests
from jobs.local_ray import start_ray
from jobs.plan_micro import resolved
from jobs.ray_session import STARTS, Message, session
from jobs.resume import check_new, open_run
from jobs.stored import Home, View
from jobs.training import run_workers
from jobs.worker import Job, cpus_per_worker, threads_per_worker
from pipeline.run import eventlog, events, stop
from pipeline.run.checkpoint import committed, step_of
from pipeline.run.folder import CHECKPOINTS, SUMMARY
from pipeline.run.lease import OTHER_COMMAND, Lease
from pipeline.run.storage import WORK, local_folder
from pipeline.step import cpu_helper
from shards.errors import DataError, Failed, M2FError, UsageError
from shards.locks import file_lock

if TYPE_CHECKING:
    from jobs.faults import Faults

LOGS = Path("ray", "logs")
ENDING_S = 3  # after which the workers of a killed command have ended


def train(
    preset: str,
    overrides: list[str],
    command: str | None = None,
    target: Target = HERE,
    check_hosts: bool = True,
    faults: "Faults | None" = None,
    began: float | None = None,
) -> Path:
    """Train a preset, or resume the run of that name.

    Args:
        preset: Name of a preset, or path of a YAML file.
        overrides: Settings as `key=value`.
        command: The command line that resumes the run, if it is not that of `train`.
        target: This machine, or a Ray cluster.
        check_hosts: Whether to check the hosts of a cluster first.
        faults: Faults to inject on purpose.
        began: When the command started, in seconds since 1970, if that was not now.

    Returns:
        The run folder; if the run is on storage, the folder of this host that shows it.

    Raises:
        UsageError: The configuration cannot be trained, or another command trains the run.
        DataError: A shard set is damaged.
        Failed: The workers failed too often, or Ray did not start.
        Interrupted, Preempted: A signal ended the run. A checkpoint was written first, unless
            Ctrl-C was pressed twice.
    """
    began = began or time.time()
    if target.cluster is None and (ignored := os.environ.get("RAY_ADDRESS")):
        warnings.warn(
            f"RAY_ADDRESS={ignored} is ignored: train runs on this machine without --on auto",
            stacklevel=2,
        )
    config, cluster = load(preset, overrides, target)
    if faults:
        faults.plan(config)
    home = Home.of(config)
    home.take()
    stores = check(config, home.is_fresh, cluster)
    config = resolved(config, home.folder, len(stores[1].manifest.taxonomy), cluster)
    if target.cluster and cluster and check_hosts:
        require_ready(config, home.is_fresh, target.cluster, cluster)
    with home.named():
        check_new(home.folder)  # before the lock makes a file in it
        with _lock(home.folder), home.lease() as lease:
            home.take()  # another command may have trained it since
            if not open_run(home.folder, config, stores, home.newest):
                return home.folder
            home.publish()
            on = ["--on", str(target)] if target.cluster else []
            on += [] if check_hosts else ["--no-check"]
            on += faults.options if faults else []
            command = command or shlex.join(["./launch.sh", "train", preset, *overrides, *on])
            _fit(config, home, lease, command, target, cluster, faults, began)
    print(f"done: {home.shown}/{SUMMARY}")
    return home.folder


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the run folder, so that no second command trains the same run.

    The workers of a command that was killed hold its lock until they have ended.
    """
    fix = "name another run: name=NAME"
    deadline = time.monotonic() + ENDING_S
    with contextlib.ExitStack() as stack:
        try:
            path = folder / ".lock"
            while not stack.enter_context(file_lock(path, wait=False)):
                if time.monotonic() > deadline:
                    raise UsageError(OTHER_COMMAND, where=folder, fix=fix)
                time.sleep(0.2)
        except OSError as error:
            where = error.filename or folder
            raise UsageError(str(error.strerror), where=where, fix=fix) from error
        yield


def _fit(
    config: Config,
    home: Home,
    lease: Lease,
    command: str,
    target: Target,
    cluster: Sequence[Node] | None,
    faults: "Faults | None",
    began: float,
) -> None:
    """Train in workers below a Ray that lives as long as this command, or on a cluster.

    Args:
        config: The config.
        home: Where the run is.
        lease: The lease of the run, which this command holds.
        command: The command line that resumes the run.
        target: This machine, or a Ray cluster.
        cluster: The nodes of the cluster.
        faults: Faults to inject on purpose.
        began: When the command started.
    """
    job = Job(
        configs.to_dict(config),
        home.folder,
        launch=f"{time.time():.3f}",
        workers=config.scaling.workers or 1,
        use_gpu=uses_gpu(config, cluster),
        url=home.url,
        owner=lease.owner,
        faults=faults and faults.schedule,
        began=began,
        fewest=config.scaling.min_workers,
    )
    if target.cluster and cluster:
        job = replace(job, is_spread=True, variables=Variables.forwarded())
        start = partial(join, address=target.cluster)
    else:
        start = partial(start_ray, cpus=job.workers * cpus_per_worker(config))
    _say_workers(config, job, target, cluster)
    if not job.is_spread and not job.use_gpu and not cpu_helper.is_compiled():
        print("compiling DeepSpeed's CPU helper, once per environment (about a minute)", flush=True)
        cpu_helper.compile_alone()
    home.withdraw_stop()
    with handled(requests.receive), faults.of_command(job) if faults else contextlib.nullcontext():
        outcome = _run(config, job, start, home, lease)
    lease.check()
    with contextlib.suppress(Failed):  # the storage is away; the next command does it
        home.withdraw_stop()
    if outcome == "stopped" or (requests.first and outcome != "done"):
        raise _interruption(home.folder, command)
    if outcome != "done":
        raise _failure(job)


def _say_workers(config: Config, job: Job, target: Target, cluster: Sequence[Node] | None) -> None:
    workers, cpus = job.workers, cpus_per_worker(config)
    shown = "GPU" if job.use_gpu else "no GPU"
    if cluster:
        print(
            f"{job.count} workers on the {len(cluster)} nodes of the Ray cluster {target}; {cpus} "
            f"CPUs reserved for each; {shown}"
        )
    else:
        threads = threads_per_worker(config.scaling.threads, workers)
        print(
            f"{workers} workers with {threads} threads each on {os.cpu_count()} cores; "
            f"{workers * cpus} CPUs reserved in Ray; {shown}"
        )


def _run(config: Config, job: Job, start: Callable[[Path], None], home: Home, lease: Lease) -> str:
    """Run the workers, and start Ray again if it did not start.

    Args:
        config: The config.
        job: The input of the workers.
        start: Starts Ray, or joins a cluster.
        home: Where the run is.
        lease: The lease of the run; the workers are ended if it is lost.

    Returns:
        The outcome of `run_workers`, or "failed" if Ray died.

    Raises:
        UsageError: The cluster cannot be joined.
        Failed: Ray did not start.
    """
    body = partial(run_workers, config, job)
    message = Message("not started")
    for attempt in range(STARTS):
        follower = Follower(job.folder, config.trainer.steps)
        view = View(home, follower.say)
        with session(body, start) as ray, follower, view:
            ray.say = follower.say
            while ray.wait() and not lease.is_lost and not _ends_now(ray.message, job, follower):
                pass
            message = ray.message
            is_good = message.text in ("done", "stopped") or requests.first
            if not is_good:
                ray.keep_logs(job.folder / LOGS)
        if message.error:
            raise message.error
        if view.failure and not requests.first:
            raise Failed(
                f"the workers ended, and the storage does not answer ({view.failure})",
                where=home.shown,
                fix="repeat the command on the same hosts, which keep what they could not send",
            )
        if message.state != "not started" or requests.first or lease.is_lost:
            return message.text or "failed"
        if attempt < STARTS - 1:
            print(f"Ray did not start ({message.text}); it is started again", file=sys.stderr)
    raise Failed(
        f"Ray did not start in {STARTS} attempts: {message.text}",
        where=job.folder.name,
        fix="run the command again when the machine is less busy",
    )


def _ends_now(message: Message, job: Job, follower: Follower) -> bool:
    """Return whether nothing is to be waited for, and pass a request to stop to the workers."""
    if message.state == "ended" or requests.at_once:
        return True
    if requests.first and not stop.is_requested(job.folder):
        starts = eventlog.read_kind(job.folder, events.Start)
        if not any(start.launch == job.launch for start in starts):
            return True  # no step has been taken
        stop.request(job.folder)
        if job.url:  # the workers of this host need not wait for the storage
            stop.request(local_folder(job.url, WORK))
        follower.say(
            f"{requests.first.name}: a checkpoint is written after this step; "
            "Ctrl-C stops without it"
        )
    return False


def _interruption(folder: Path, command: str) -> M2FError:
    """Return the error for a run that a signal, or another request to stop, has ended."""
    checkpoints = committed(folder / CHECKPOINTS)
    step = f"of step {step_of(checkpoints[0])}" if checkpoints else "not written yet"
    state, fix = f"the newest checkpoint is {step}", f"to resume: {command}"
    if requests.first is None:  # somebody has put the request there
        return Preempted(f"stopped on request; {state}", where=folder, fix=fix)
    return requests.error(state, where=folder, fix=fix)


def _failure(job: Job) -> M2FError:
    """Return the error that the command ends with.

    It is the first error of a worker that the user can correct; otherwise the last error that is
    not about the end of another worker.
    """
    failures = eventlog.read_kind(job.folder, events.Failure)
    failures = [failure for failure in failures if failure.launch == job.launch]
    for failure in failures:
        for kind in (UsageError, DataError):
            if failure.exit_code == kind.exit_code:
                return kind(failure.what, where=failure.where, fix=failure.fix)
    own = [failure for failure in failures if not failure.lost_peer]
    cause = f"{own[-1].kind}: {own[-1].text}" if own else "the workers died"
    log = job.folder / (eventlog.EVENTS if own else LOGS)
    return Failed(f"the run failed: {cause}", where=job.folder.name, fix=f"see {log}")
