"""Send a command to a scheduler instead of running it here, and find it by its name later."""

import os
import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs import config as configs
from jobs.cluster import site as sites
from jobs.cluster import submissions
from jobs.cluster.secret import holds_password
from jobs.cluster.site import Site
from jobs.cluster.submissions import DONE, FINAL, ClusterJob, Scheduler, Submission
from jobs.cluster.target import Target
from jobs.config import Config
from jobs.interrupts import Interrupted, Preempted, handled, requests
from jobs.locations import runs_location
from jobs.preset import preset_path, read_preset
from shards.errors import DataError, Failed, M2FError, UsageError
from shards.files import is_url

Locations = Mapping[str, str | Path | list[str] | None]

POLL_S = 0.2
OPTIONS = {"--on": 1, "--site": 1, "--dry-run": 0}  # of this machine, with their numbers of values
ERRORS = {kind.exit_code: kind for kind in (Failed, UsageError, DataError, Preempted, Interrupted)}


def scheduler(kind: str) -> Scheduler:
    """Return the scheduler of a kind of target."""
    if kind == "job":
        from jobs.cluster.ray_job import RayJobs

        return RayJobs()
    if kind == "kuberay":
        from jobs.cluster.kuberay import KubeRay

        return KubeRay()
    assert kind == "slurm", kind
    from jobs.cluster.slurm import Slurm

    return Slurm()


def resolve(on: str, site: Path | None, dry_run: bool) -> tuple[Target, Site]:
    """Return the target of `--on`, and the facts of `--site`.

    Raises:
        UsageError: The target is unknown, the site file is wrong, or `--dry-run` has no effect.
    """
    facts = sites.load(site)
    target = target_of(on, facts)
    if dry_run and not target.is_submitted:
        fix = "give --on slurm, kuberay, or http://HOST:8265, or leave it out"
        raise UsageError(f"--on {target} submits nothing", where="--dry-run", fix=fix)
    return target, facts


def target_of(on: str, site: Site) -> Target:
    """Return the target of `--on`; `auto` may be the address of the site."""
    if on == "auto" and not os.environ.get("RAY_ADDRESS") and site.ray.address:
        return Target.parse(site.ray.address)
    return Target.parse(on)


def with_runs(preset: str, overrides: Sequence[str], site: Site) -> list[str]:
    """Return the overrides with the `runs` of the site, unless they or the preset have another.

    Raises:
        UsageError: The preset is unknown.
    """
    is_set = "runs" in read_preset(preset)
    if not site.runs or is_set or any(word.startswith("runs=") for word in overrides):
        return [*overrides]
    return [*overrides, f"runs={site.runs}"]


def train_job(preset: str, overrides: Sequence[str], target: Target, site: Site) -> ClusterJob:
    """Return the job that trains a preset, after the checks that need no cluster.

    Raises:
        UsageError: A setting is wrong, or a path has no meaning on the cluster.
    """
    config = configs.read(preset, overrides)
    own = [] if config.name else [f"name={preset_path(preset).stem}"]
    config = configs.read(preset, [*overrides, *own])
    for key, location in _locations(config):
        _check_location(location, f"{key}={location}", target)
    runs_location(config.runs)
    return ClusterJob(
        name=config.name,
        command=["train", preset, *overrides, *own],
        address=target.address,
        site=site,
        runs=config.runs,
        preset=preset if preset.endswith((".yaml", ".yml")) else "",
    )


def _locations(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the keys and the values of the settings that are paths or URLs."""
    yield "runs", config.runs
    yield from (("data.train", location) for location in config.data.train)
    yield "data.val", config.data.val
    yield "data.cache.folder", config.data.cache.folder
    if config.model.weights != "none":
        yield "model.weights", config.model.weights
    if "/" in config.model.init_from:  # otherwise the name of a run, or none
        yield "model.init_from", config.model.init_from


def run_job(run: str, locations: Locations, target: Target, site: Site) -> ClusterJob:
    """Return the job of the command line of this process, which uses a run.

    Args:
        run: The run, by name, path, or URL.
        locations: The options and arguments that are paths or URLs.
        target: Where it runs.
        site: The facts about the cluster.

    Raises:
        UsageError: A path has no meaning on the cluster.
    """
    is_name = "/" not in run
    found = f"{site.runs.rstrip('/')}/{run}" if is_name and site.runs else run
    _check_locations({"RUN": found, **locations}, target)
    command, *rest = without_options(sys.argv[1:])
    rest[rest.index(run)] = found
    name = f"{run.rstrip('/').rpartition('/')[2]}-{command}"
    return ClusterJob(name, [command, *rest], target.address, site, site.runs)


def build_job(out: str, locations: Locations, target: Target, site: Site) -> ClusterJob:
    """Return the job of the command line of this process, which builds shard sets.

    Raises:
        UsageError: A path has no meaning on the cluster.
    """
    _check_locations(locations, target)
    name = f"{out.rstrip('/').rpartition('/')[2]}-build"
    return ClusterJob(name, without_options(sys.argv[1:]), target.address, site)


def without_options(words: Sequence[str]) -> list[str]:
    """Return a command line without OPTIONS and their values."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*kept, word, *rest]
        option, equals, _ = word.partition("=")
        if option not in OPTIONS:
            kept.append(word)
        elif not equals:
            del rest[: OPTIONS[option]]
    return kept


def _check_locations(locations: Locations, target: Target) -> None:
    for option, given in locations.items():
        for location in given if isinstance(given, list) else [given]:
            if location is not None:
                _check_location(str(location), f"{option} {location}", target)


def _check_location(location: str, where: str, target: Target) -> None:
    """Check that a path or a URL means the same on a cluster, and holds no password.

    The nodes of SLURM share the folders of this machine.
    """
    if holds_password(location):  # the scheduler shows it, and the record keeps it
        raise UsageError(
            "the URL holds a password",
            where=re.split("[= ]", where)[0],
            fix="set the credentials on the nodes of the cluster",
        )
    if target.kind != "slurm" and not is_url(location) and not location.startswith(("/", "~")):
        raise UsageError(
            f"the path is relative to a folder of this machine, which --on {target} does not have",
            where=where,
            fix="give a URL, or the absolute path of a folder that all nodes of the cluster share",
        )


def submit(job: ClusterJob, target: Target, dry_run: bool) -> None:
    """Submit a job, or print what would be submitted. The output of a Ray job is followed.

    Raises:
        M2FError: The scheduler refuses it, or the job that is followed ends with an exit code other
            than 0. The error has the same exit code.
    """
    where = scheduler(target.kind)
    if dry_run:
        print(where.render(job), end="")
        return
    _check_not_active(job.name)
    submission = where.submit(job)
    submissions.save(submission)
    print(f"submitted {job.name} as {submission.id}", flush=True)
    if target.kind == "job":
        follow(submission)
    else:
        print(
            f"its state: ./launch.sh status {job.name}; its output: ./launch.sh logs -f {job.name}"
        )


def _check_not_active(name: str) -> None:
    earlier = submissions.find(name)
    if earlier is None:
        return
    try:
        state = scheduler(earlier.kind).status(earlier).state
    except M2FError:  # the cluster may be gone
        return
    if state not in FINAL:
        raise UsageError(
            f"{name} is submitted already, as {earlier.id}, and is {state}",
            fix=f"see ./launch.sh logs -f {name}, or first ./launch.sh stop {name}",
        )


def follow(submission: Submission) -> None:
    """Print the output of a job until it ends. Ctrl-C ends this command and not the job.

    Raises:
        M2FError: The job ended with an exit code other than 0, which is that of the error.
        Interrupted: Ctrl-C was pressed.
    """
    where = scheduler(submission.kind)
    with handled(requests.receive):
        for piece in in_background(where.logs(submission, follow=True)):
            print(piece, end="", flush=True)
        while not requests.first and (status := where.status(submission)).state not in FINAL:
            threading.Event().wait(POLL_S)
    if requests.first:
        raise requests.error(
            f"{submission.name} continues to run",
            fix=f"to come back: ./launch.sh logs -f {submission.name}; "
            f"to stop it: ./launch.sh stop {submission.name}",
        )
    if status.state != DONE:
        code = status.exit_code if status.exit_code in ERRORS else Failed.exit_code
        reason = f" ({status.text})" if status.text else ""
        raise ERRORS[code](
            f"{submission.name} has {status.state}{reason}"
            if status.state == "failed"
            else f"{submission.name} was {status.state}{reason}",
            fix=f"its output: ./launch.sh logs {submission.name}",
        )


def in_background(pieces: Iterator[str]) -> Iterator[str]:
    """Yield from an iterator that blocks, until it ends or a signal has arrived."""
    found: queue.Queue[str | BaseException | None] = queue.Queue()

    def read() -> None:
        try:
            for piece in pieces:
                found.put(piece)
            found.put(None)
        except BaseException as error:
            found.put(error)

    threading.Thread(target=read, daemon=True).start()
    while not requests.first:
        try:
            piece = found.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if piece is None:
            return
        if isinstance(piece, BaseException):
            raise piece
        yield piece
