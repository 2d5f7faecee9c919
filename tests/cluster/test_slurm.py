"""`--on slurm` on a real SLURM with two hosts: two jobs at once, and every fault in one of them.

A stage of the data holds the runs at chosen steps, so that the faults arrive while they train.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from jobs.cluster import submissions
from jobs.cluster.slurm import Slurm as Scheduler
from pipeline.run import eventlog, events, stop
from pipeline.run.checkpoint import committed, step_of
from pipeline.run.folder import CHECKPOINTS
from tests.cluster.slurm import Slurm, slurm
from tests.jobs import small
from tests.pipeline.data.test_stages import HERE

pytestmark = pytest.mark.slow

STEPS, STRIDE = 28, 4
SECRETS = {
    "WANDB_API_KEY": "planted-key-of-wandb",
    "AWS_SECRET_ACCESS_KEY": "planted-key-of-aws",
    "RAY_AUTH_TOKEN": "planted-token-of-ray",
}
# Ray gives up a node that does not answer for about 20 s.
LIMITS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}
SITE = {"nodes": 2, "cpus_per_node": 2, "grace_s": 120, "time": "30", "env": LIMITS}
CUT_S = 5  # a cut that is shorter than all limits
WAIT_S = 600


@dataclass
class Jobs:
    """Submits runs, and looks at them.

    Attributes:
        cluster: The cluster.
        folder: The folder of the commands, with the site file.
        photographs: The shard sets.
    """

    cluster: Slurm
    folder: Path
    photographs: Path

    def call(self, *words: str, **variables: str) -> small.Outcome:
        """Run a command that the user types on a login node."""
        return small.finish(small.start(self.folder, *words, **variables))

    def words(self, name: str, *changes: str) -> list[str]:
        fixed = [f"name={name}", f"trainer.steps={STEPS}", "scaling.threads=1"]
        return small.words(self.photographs, *fixed, f"data.stages=[{HERE}:gated]", *changes)

    def gate(self, name: str, step: int) -> dict[str, str]:
        """Let a run take steps up to `step`, and return the variable of its stage."""
        path = self.folder / f"gate-{name}"
        path.write_text(str(step * small.GLOBAL_BATCH))
        return {"M2F_TEST_GATE": str(path)}

    def submit(self, name: str) -> submissions.Submission:
        """Submit a run that waits after the first STRIDE steps."""
        variables = SECRETS | self.gate(name, STRIDE)
        outcome = self.call(*self.words(name), "--on", "slurm", "--site", "site.yaml", **variables)
        assert outcome.code == 0, outcome.err
        found = submissions.find(name)
        assert found
        return found

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def starts(self, name: str) -> list[events.Start]:
        return eventlog.read_kind(self.run(name), events.Start)

    def wait(self, job: submissions.Submission, look: Callable[[], object]) -> None:
        """Wait until `look` returns a true value, while a job has not ended."""
        deadline = time.monotonic() + WAIT_S
        while not look():
            status = Scheduler().status(job)
            is_early = status.state not in submissions.FINAL
            assert is_early, f"{status}\n{self.logs(job)}"
            assert time.monotonic() < deadline, f"{status}\n{self.logs(job)}"
            time.sleep(0.2)

    def train(self, job: submissions.Submission, start: int) -> None:
        """Wait until a start of a run, counted from 1, has taken STRIDE more steps."""
        self.wait(job, lambda: len(self.starts(job.name)) == start)
        step = self.starts(job.name)[-1].step + STRIDE
        self.gate(job.name, step)
        self.wait(job, lambda: self.newest(job.name) >= step)

    def take_one_more_step(self, job: submissions.Submission, gate: int) -> None:
        """Open the gate once the workers are asked to stop, because they may wait at it."""
        run = self.run(job.name)
        stopped = partial(eventlog.read_kind, run, events.Stopped)
        self.wait(job, lambda: stop.is_requested(run) or stopped())
        self.gate(job.name, gate)

    def newest(self, name: str) -> int:
        return max(map(step_of, committed(self.run(name) / CHECKPOINTS)), default=0)

    def end(self, job: submissions.Submission) -> submissions.Status:
        """Wait for the end of a job and return its state."""
        deadline = time.monotonic() + WAIT_S
        while (status := Scheduler().status(job)).state not in submissions.FINAL:
            assert time.monotonic() < deadline, f"{status}\n{self.logs(job)}"
            time.sleep(0.5)
        return status

    def logs(self, job: submissions.Submission) -> str:
        texts = [path.read_text() for path in Path(job.log).parent.glob(f"{job.id}.*")]
        return "\n".join([*texts, self.cluster.logs()])

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """Return the parameters and moments after the last step."""
        assert self.newest(name) == STEPS
        return small.last_state(self.run(name), STEPS)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Iterator[Jobs]:
    photographs = small.photographs(tmp_path_factory.getbasetemp())
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "site.yaml").write_text(yaml.safe_dump({"slurm": SITE}))
    with slurm() as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.access.items():
            patch.setenv(name, value)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        yield Jobs(cluster, folder, photographs)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def commands() -> dict[int, str]:
    """Return the command lines of all processes."""
    shown = subprocess.run(["ps", "-e", "-ww", "-o", "pid=,args="], capture_output=True, text=True)
    return {int(line.split()[0]): line for line in shown.stdout.splitlines()}


def check_no_secret(jobs: Jobs, job: submissions.Submission) -> None:
    """Check that no planted secret, nor the token of the job, is where others can read it."""
    lines = commands()
    ours = {pid: line for pid, line in lines.items() if f"name={job.name} " in line}
    driver = next(pid for pid, line in ours.items() if " --on 10.77." in line)
    variables = Path(f"/proc/{driver}/environ").read_bytes().decode().split("\0")
    token = next(text for text in variables if text.startswith("RAY_AUTH_TOKEN="))
    secrets = [*SECRETS.values(), token.partition("=")[2]]
    assert secrets[-1] != SECRETS["RAY_AUTH_TOKEN"]
    assert f"WANDB_API_KEY={SECRETS['WANDB_API_KEY']}" in variables
    texts = {"commands": "\n".join(lines.values())}
    texts["job"] = jobs.cluster.run("scontrol", "show", "job", job.id)
    for path in files(jobs.folder):
        texts[str(path)] = path.read_bytes().decode(errors="replace")
    found = [where for where, text in texts.items() if any(secret in text for secret in secrets)]
    assert not found


def test_what_slurm_refuses_is_one_line_and_leaves_nothing(jobs: Jobs):
    before = files(jobs.folder / "state")
    for change, key in (
        ({"partition": "nope"}, "slurm.partition=nope"),
        ({"nodes": 3}, "slurm.nodes=3, slurm.cpus_per_node=2"),
        ({"gpus_per_node": 4}, "slurm.gpus_per_node=4"),
        ({"memory": "9000G"}, "slurm.nodes=2, slurm.cpus_per_node=2, slurm.memory=9000G"),
        ({"time": "soon"}, "slurm.time=soon"),
        ({"sbatch": ["--nonsense"]}, "--on slurm"),
    ):
        (jobs.folder / "other.yaml").write_text(yaml.safe_dump({"slurm": SITE | change}))
        outcome = jobs.call(*jobs.words("bad"), "--on", "slurm", "--site", "other.yaml")
        assert outcome.code == 2, outcome
        assert small.complaint(outcome).startswith(f"error: {key}: ")
        assert outcome.out == ""
    assert files(jobs.folder / "state") == before
    assert jobs.cluster.run("squeue", "--noheader") == ""


def test_a_dry_run_prints_a_script_that_shellcheck_accepts(jobs: Jobs):
    site = {
        "modules": ["cuda/12.4"],
        "setup": ["ulimit -n 65536"],
        "env": {"TEXT": 'it\'s a "$HOME"'},
        "container": "registry.example/m2f:1",
        "container_mounts": ["/data:/data"],
        "sbatch": ["--constraint=h100&nvme"],
    }
    (jobs.folder / "other.yaml").write_text(yaml.safe_dump({"slurm": SITE | site}))
    for name in ("site.yaml", "other.yaml"):
        words = jobs.words("dry")
        shown = jobs.call(*words, "--on", "slurm", "--site", name, "--dry-run", **SECRETS)
        assert shown.code == 0, shown.err
        assert not [value for value in SECRETS.values() if value in shown.out]
        checked = subprocess.run(
            ["shellcheck", "--severity=style", "-"], input=shown.out, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout
    assert jobs.cluster.run("squeue", "--noheader") == ""


def test_two_jobs_share_the_hosts_and_survive_every_fault(jobs: Jobs):
    here = small.start(jobs.folder, *jobs.words("here"), **jobs.gate("here", STEPS))
    hurt, stopped = jobs.submit("hurt"), jobs.submit("stopped")
    first, second = jobs.cluster.hosts

    # Both train on both hosts at the same time.
    for job in (hurt, stopped):
        jobs.train(job, start=1)
        assert sorted(jobs.starts(job.name)[0].hosts) == ["h1", "h2"]
    check_no_secret(jobs, hurt)

    # `stop` ends one with a checkpoint and for good.
    assert jobs.call("stop", "stopped").code == 0
    jobs.take_one_more_step(stopped, 2 * STRIDE)
    status = jobs.end(stopped)
    assert (status.state, status.exit_code) == ("stopped", 75)
    (end,) = eventlog.read_kind(jobs.run("stopped"), events.Stopped)
    assert jobs.newest("stopped") == end.step in (STRIDE, STRIDE + 1)

    # A cut that is shorter than all limits only delays the next step.
    second.cut_link()
    jobs.gate("hurt", 2 * STRIDE)
    time.sleep(CUT_S)
    second.join_link()
    jobs.wait(hurt, lambda: jobs.newest("hurt") == 2 * STRIDE)
    assert len(jobs.starts("hurt")) == 1

    # The warning before the time limit leads to a checkpoint and a requeue.
    jobs.cluster.run("scancel", "--signal=TERM", "--batch", hurt.id)
    jobs.take_one_more_step(hurt, 3 * STRIDE)
    jobs.train(hurt, start=2)
    (end,) = eventlog.read_kind(jobs.run("hurt"), events.Stopped)
    assert jobs.starts("hurt")[1].step == end.step in (2 * STRIDE, 2 * STRIDE + 1)

    # A host without the batch process, then the one with it, lose their power and come back.
    for start, host in ((3, second), (4, first)):
        host.kill_processes()
        jobs.cluster.start_node(host)
        jobs.train(hurt, start=start)

    # A cut that is longer than Ray's limits leads to a requeue once the link is back.
    second.cut_link()
    jobs.wait(hurt, lambda: Path(hurt.log).read_text().count("the node h2 was lost") == 2)
    second.join_link()
    jobs.gate("hurt", STEPS)
    assert jobs.end(hurt).state == "done", jobs.logs(hurt)
    assert len(jobs.starts("hurt")) == 5
    assert small.finish(here).code == 0
    small.assert_same_state(jobs.weights("hurt"), jobs.weights("here"))

    # Nothing is left, and what the user reads is plain.
    assert not [line for line in commands().values() if f"name={hurt.name} " in line]
    assert "done  slurm" in jobs.call("status", "hurt").out
    shown = jobs.call("logs", "hurt").out
    assert f"job {hurt.id}: on 2 nodes: h1, h2; restart 1" in shown
