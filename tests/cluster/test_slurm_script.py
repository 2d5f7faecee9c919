"""The script of a job of SLURM, and what its states mean, without a SLURM."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster import slurm
from jobs.cluster.site import Site, SlurmSite
from jobs.cluster.slurm import Slurm
from jobs.cluster.submissions import ClusterJob, Status, Submission
from shards.errors import UsageError

HARD = 'it\'s a "$HOME" `x` \\ %j; rm -rf #'  # a text that a shell would interpret
FULL = SlurmSite(
    partition="gpu",
    account="lab-1",
    qos="long",
    time="1-00:00:00",
    nodes=4,
    gpus_per_node=8,
    cpus_per_node=96,
    memory="900G",
    grace_s=240,
    modules=["cuda/12.4", "gcc"],
    setup=["ulimit -n 65536"],
    env={"NCCL_IB_HCA": "mlx5", "TEXT": HARD},
    container="registry.example/m2f:1",
    container_mounts=["/data:/data", "/home:/home"],
    sbatch=["--constraint=h100&nvme", "--exclude=bad[1-2]", "--hint=nomultithread", "--no-kill"],
)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch) -> Path:
    """A folder of submissions whose name needs quotes."""
    folder = tmp_path / "50% of my 'state'"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder / "mask2former" / "slurm"


def job(site: SlurmSite, *words: str, name: str = "mine") -> ClusterJob:
    return ClusterJob(name, ["train", *words], site=Site(slurm=site), runs="/runs")


def options(script: str) -> dict[str, str]:
    """Return the options that sbatch reads in a script."""
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line.removeprefix("#SBATCH ")) for line in lines]
    assert all(len(word) == 1 for word in words)
    return {name: value for (word,) in words for name, _, value in [word.partition("=")]}


def test_the_script_asks_for_the_nodes_of_the_site_and_for_a_warning(state):
    script = Slurm().render(job(FULL, "tiny"))
    assert options(script) == {
        "--job-name": "mine",
        "--nodes": "4",
        "--ntasks-per-node": "1",
        "--signal": "B:TERM@240",
        "--output": f"{str(state / 'mine').replace('%', '%%')}/%j.log",
        "--open-mode": "append",
        "--chdir": str(Path.cwd()),
        "--partition": "gpu",
        "--account": "lab-1",
        "--qos": "long",
        "--time": "1-00:00:00",
        "--gpus-per-node": "8",
        "--cpus-per-task": "96",
        "--mem": "900G",
        "--requeue": "",
        "--constraint": "h100&nvme",
        "--exclude": "bad[1-2]",
        "--hint": "nomultithread",
        "--no-kill": "",
    }
    last = shlex.split(script.splitlines()[-1])
    body = [sys.executable, "-P", "-m", "jobs.cluster.slurm_job"]
    assert last[:5] == ["exec", *body]
    assert last[last.index("--") + 1 :] == ["python3", "-P", "-m", "jobs", "train", "tiny"]
    assert "--container=--container-mounts=/data:/data,/home:/home" in last
    assert "--run=/runs/mine" in last


def test_an_empty_site_leaves_the_rest_to_slurm_and_reserves_whole_nodes():
    script = Slurm().render(job(SlurmSite()))
    assert options(script).keys() == {
        *("--job-name", "--nodes", "--ntasks-per-node", "--signal", "--output", "--open-mode"),
        *("--chdir", "--requeue", "--exclusive"),
    }
    assert len(script.splitlines()) == 14
    assert sys.executable in shlex.split(script.splitlines()[-1])[-5:]


def test_a_shell_passes_every_word_on_unchanged(tmp_path):
    """The body of the script is replaced by a program that prints its words."""
    words = ["name=a b", HARD, "", "ü\n*", "--flag"]
    script = Slurm().render(job(SlurmSite(env={"TEXT": HARD}), *words))
    show = "import os, sys; print(repr((os.environ['TEXT'], sys.argv[1:])))"
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    script = script.replace("-P -m jobs.cluster.slurm_job", f"-c {shlex.quote(show)}")
    shown = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True)
    text, passed = eval(shown.stdout)
    assert text == HARD
    assert passed[passed.index("train") + 1 :] == words


def test_a_line_break_in_an_option_of_sbatch_is_refused():
    with pytest.raises(UsageError, match="job-name holds a line break"):
        Slurm().render(job(SlurmSite(), name="a\n#SBATCH --uid=0"))


def test_no_secret_of_the_environment_is_in_the_script(monkeypatch):
    secrets = {
        "WANDB_API_KEY": "w" * 40,
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "RAY_AUTH_TOKEN": "t0k",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    script = Slurm().render(job(FULL, "tiny"))
    assert not [value for value in secrets.values() if value in script]


def test_a_machine_without_slurm_is_named(monkeypatch, state):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match="sbatch is not installed here") as error:
        Slurm().submit(job(SlurmSite()))
    assert error.value.problem.where == "--on slurm"
    assert not state.exists()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("invalid partition specified: nope", "partition"),
        ("Invalid account or account/partition combination specified", "account"),
        ("Invalid qos specification", "qos"),
        ("Invalid --time specification", "time"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "time"),
        ("Invalid generic resource (gres) specification", "gpus_per_node"),
        ("Memory specification can not be satisfied", "memory"),
        ("Node count specification invalid", "nodes"),
        ("Requested node configuration is not available", "nodes"),
        ("Access/permission denied", "partition"),
    ],
)
def test_a_refusal_names_the_key_of_the_site(text, key):
    error = slurm._refusal(text, FULL)
    assert error
    assert error.problem.where.startswith(f"slurm.{key}={getattr(FULL, key)}")
    assert text in error.problem.what
    assert error.problem.fix


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        ("COMPLETED", 0, Status("done", exit_code=0)),
        ("FAILED", 75, Status("stopped", "stopped by a signal", 75)),
        ("FAILED", 130, Status("stopped", "stopped by a signal", 130)),
        ("FAILED", 3, Status("failed", "exit code 3", 3)),
        ("CANCELLED", 0, Status("stopped", "canceled")),
        ("TIMEOUT", 0, Status("failed", "the time limit was reached")),
        ("OUT_OF_MEMORY", 0, Status("failed", "OUT_OF_MEMORY")),
    ],
)
def test_a_final_state_of_slurm_is_translated(state, code, status):
    assert slurm._final(state, code) == status


def test_a_job_that_slurm_has_forgotten_has_the_exit_code_of_its_record(tmp_path, monkeypatch):
    for name, lines in {
        "scontrol": "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    submission = Submission("mine", "slurm", "7", [], log=str(tmp_path / "7.log"))
    assert Slurm().status(submission).state == "failed"
    (tmp_path / "7.json").write_text('{"exit_code": 0}')
    assert Slurm().status(submission) == Status("done", exit_code=0)
