"""What a job of SLURM does on its first node, with stand-ins for srun and scontrol."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.run.checkpoint import COMMITTED, name_of
from pipeline.run.folder import CHECKPOINTS
from tests.jobs.small import ROOT

TIMEOUT_S = 60
# A step on one node runs its command. The step of Ray does what the file `step` says.
SRUN = """\
#!/bin/sh
echo "$*" >>"$HERE/sruns"
case $* in
*--nodes=1*) while [ "${1#--}" != "$1" ]; do shift; done; exec "$@" ;;
*) sh "$HERE/step" ;;
esac
"""
SCONTROL = """\
#!/bin/sh
case $* in
"show hostnames"*) printf 'h1\\nh2\\n' ;;
"show job"*) cat "$HERE/shown" ;;
*) echo "$*" >>"$HERE/scontrols"; [ ! -e "$HERE/refuses" ] || { echo "slurm: no" >&2; exit 1; } ;;
esac
"""
UP = "echo '0: joined h1'; echo '0: joined h2'; echo '0: ready 10.0.0.1:6379'; "
WAITS = UP + "cat >/dev/null"
SHORT = "READY_S=2; j.SETTLE_S=1; j.ASK_EVERY_S=0.1; j.PATIENCE_S=0.5"


@dataclass
class Attempt:
    code: int
    out: str
    record: dict


class Job:
    """Runs attempts of one job.

    Attributes:
        folder: Its files.
        run: The folder of its run.
    """

    def __init__(self, folder: Path):
        self.folder, self.run = folder, folder / "run"
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.says(WAITS)
        self.shows("RUNNING", requeue=1)

    def says(self, step: str) -> None:
        """Set what the step of Ray does, as a line of shell."""
        (self.folder / "step").write_text(step)

    def shows(self, state: str, requeue: int) -> None:
        """Set what SLURM says about the job."""
        text = f"JobId=7 JobName=a JobState={state} Reason=None Requeue={requeue} Restarts=0"
        (self.folder / "shown").write_text(f"{text} ExitCode=0:0 NodeList=h[1-2]\n")

    def start(self, command: str, *options: str) -> subprocess.Popen:
        """Start an attempt whose command is a Python program."""
        code = f"import sys; from jobs.cluster import slurm_job as j; j.{SHORT}; sys.exit(j.main())"
        path = f"{self.folder}:{os.environ['PATH']}"
        variables = {"PATH": path, "HERE": str(self.folder), "PYTHONPATH": str(ROOT)}
        variables |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "h[1-2]", "SLURMD_NODENAME": "h1"}
        words = [f"--state={self.folder}", "--grace=30", f"--run={self.run}", *options]
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, *words, "--", sys.executable, "-c", command],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, attempt: subprocess.Popen) -> Attempt:
        out, _ = attempt.communicate(timeout=TIMEOUT_S)
        return Attempt(attempt.returncode, out, json.loads((self.folder / "7.json").read_text()))

    def attempt(self, command: str, *options: str) -> Attempt:
        return self.finish(self.start(command, *options))

    def requeues(self) -> int:
        path = self.folder / "scontrols"
        return path.read_text().splitlines().count("requeue 7") if path.exists() else 0


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_the_exit_code_of_the_command_is_that_of_the_job(job, code):
    ended = job.attempt(f"import sys; print(sys.argv[1:]); sys.exit({code})")
    assert (ended.code, ended.record["exit_code"], job.requeues()) == (code, code, 0)
    assert "['--on', '10.0.0.1:6379']" in ended.out
    words = (job.folder / "sruns").read_text()
    assert "--overlap --nodes 2 --ntasks 2 --ntasks-per-node=1" in words
    assert " -P -m jobs.cluster.slurm_node --port=20014" in words


def test_ray_and_the_command_run_in_the_container(job):
    image, mounts = "--container-image=a.sqsh", "--container-mounts=/data:/data"
    ended = job.attempt(KILLED, f"--container={image}", f"--container={mounts}")
    assert (ended.code, job.requeues()) == (75, 1)
    ray, command, look = (job.folder / "sruns").read_text().splitlines()
    assert f"{image} {mounts} {sys.executable} -P -m jobs.cluster.slurm_node" in ray
    assert f"--nodes=1 --ntasks=1 --nodelist=h1 --mem=0 --cpu-bind=none {image} {mounts}" in command
    assert look.endswith(
        f"{image} {mounts} {sys.executable} -P -m jobs.cluster.newest_step {job.run}"
    )


def test_the_command_knows_a_token_that_is_in_no_file_or_command_line(job):
    show = "import os; print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_AUTH_TOKEN'])"
    tokens = []
    for _ in range(2):
        line = next(line for line in job.attempt(show).out.splitlines() if "token " in line)
        tokens.append(line.partition(" ")[2])
        files = [path for path in job.folder.iterdir() if path.is_file()]
        assert not [path for path in files if tokens[-1] in path.read_text()]
    assert len(tokens[0]) == 64
    assert tokens[0] != tokens[1]


WRITES_AND_ENDS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("training", flush=True)
time.sleep(60)
"""


def warn(job: Job, wait_for: str = "training") -> Attempt:
    """Start an attempt and warn it as SLURM does before the time limit."""
    started = job.start(WRITES_AND_ENDS)
    assert started.stdout
    lines = []
    while wait_for not in (line := started.stdout.readline()):
        assert line, lines
        lines.append(line)
    started.send_signal(signal.SIGTERM)
    return job.finish(started)


def test_a_warning_reaches_the_command_and_the_job_is_requeued(job):
    ended = warn(job)
    assert (ended.code, job.requeues()) == (75, 1)
    assert "stopped by a signal" in ended.out
    assert "requeued" in ended.out


def test_a_warning_before_the_nodes_are_up_requeues_at_once(job):
    job.says("cat >/dev/null")
    ended = warn(job, wait_for="on 2 nodes: h1, h2")
    assert (ended.code, job.requeues()) == (75, 1)


def test_a_job_that_is_stopped_or_canceled_is_not_requeued(job):
    job.shows("RUNNING", requeue=0)
    ended = warn(job)
    assert (ended.code, job.requeues()) == (75, 0)
    assert "submit the same command again" in ended.out
    job.shows("CANCELLED", requeue=1)
    assert (warn(job).code, job.requeues()) == (75, 0)


def test_a_lost_node_ends_the_command_and_the_job_is_requeued(job):
    job.says(UP + "sleep 1; echo '0: lost h2'; cat >/dev/null")
    ended = job.attempt("import time; time.sleep(60)")
    assert (ended.code, job.requeues()) == (75, 1)
    assert "job 7: the node h2 was lost" in ended.out


def test_a_node_whose_ray_ends_is_shown_with_its_last_lines(job):
    job.says(UP + "echo '1: no memory'; echo '1: ended with exit code 1'; exit 1")
    ended = job.attempt("import sys, time; time.sleep(1); sys.exit(1)")
    assert (ended.code, job.requeues()) == (75, 1)
    assert "job 7: Ray ended on h2 (h2: no memory | ended with exit code 1)" in ended.out


def test_a_node_that_does_not_join_is_named_with_its_last_lines(job):
    job.says("echo '0: joined h1'; echo '1: cannot reach 10.0.0.1'; cat >/dev/null")
    ended = job.attempt("")
    assert (ended.code, job.requeues()) == (75, 1)
    assert "after 2 s h2 did not join (h2: cannot reach 10.0.0.1)" in ended.out


def checkpoint(job: Job, step: int) -> None:
    folder = job.run / CHECKPOINTS / name_of(step, 1)
    folder.mkdir(parents=True)
    (folder / COMMITTED).touch()


KILLED = "import os; os.kill(os.getpid(), 9)"


def test_restarts_without_a_new_checkpoint_end_the_job(job):
    restarts = []
    for step in (None, 0, None):
        if step is not None:
            checkpoint(job, step)
        ended = job.attempt(KILLED)
        assert ended.code == 75
        restarts.append(ended.record["restarts"])
    assert restarts == [1, 0, 1]

    (job.folder / "7.json").write_text('{"step": 0, "restarts": 3}')
    ended = job.attempt(KILLED)
    assert (ended.code, job.requeues()) == (1, 3)
    error = "error: job 7: 3 restarts made no progress: the command was ended by SIGKILL; see "
    assert error in ended.out


def test_a_controller_that_does_not_requeue_is_asked_again_for_a_while(job):
    (job.folder / "refuses").touch()
    ended = job.attempt(KILLED)
    assert ended.code == 1
    assert job.requeues() > 1
    assert "error: scontrol requeue 7: no" in ended.out


def test_nothing_is_left_of_a_command_that_leaves_children(job):
    """The command starts a process in a session of its own and is killed."""
    mark = f"{time.time()}"
    start = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEPS}', '{mark}'], "
    )
    job.attempt(start + f"start_new_session=True); {KILLED}")
    shown = subprocess.run(
        ["ps", "-e", "-ww", "-o", "args"], capture_output=True, text=True, check=True
    )
    assert mark not in shown.stdout


SLEEPS = "import time; time.sleep(60)"
