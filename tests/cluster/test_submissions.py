"""Commands that are submitted: the checks, the record, and status, logs, and stop by name."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from jobs.cluster import control, dispatch, submissions
from jobs.cluster import site as sites
from jobs.cluster.submissions import ClusterJob, Status, Submission
from jobs.cluster.target import Target
from pipeline.run import eventlog, events, stop
from shards.locks import file_lock
from tests.jobs import small

URL = "http://head:8265"
SETS = ("data.train=s3://b/train", "data.val=s3://b/val", "runs=s3://b/runs")


class Recorder:
    """A scheduler that takes every job, and whose answers the test sets."""

    def __init__(self) -> None:
        self.jobs: list[ClusterJob] = []
        self.stopped: list[str] = []
        self.answer = Status("done", exit_code=0)
        self.output = ["one\n", "two\n"]
        self.while_followed: Callable[[], object] = lambda: None
        self.ends = threading.Event()
        self.ends.set()

    def render(self, job: ClusterJob) -> str:
        return f"would run {job.command}\n"

    def submit(self, job: ClusterJob) -> Submission:
        self.jobs.append(job)
        return Submission(job.name, "job", f"{job.name}-1", job.command, job.address, job.runs)

    def status(self, submission: Submission) -> Status:
        return self.answer

    def logs(self, submission: Submission, follow: bool) -> Iterator[str]:
        yield from self.output
        if follow:
            self.while_followed()
            self.ends.wait()

    def stop(self, submission: Submission) -> None:
        self.stopped.append(submission.id)


@pytest.fixture
def recorder(monkeypatch):
    found = Recorder()
    monkeypatch.setattr(dispatch, "scheduler", lambda kind: found)
    monkeypatch.setattr(control, "scheduler", lambda kind: found)
    return found


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(sites.VARIABLE, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def test_a_run_is_submitted_with_its_name_and_the_runs_of_the_site(home, recorder):
    (home / "my_site.yaml").write_text("runs: s3://site/runs\n")
    site = ["--site", "my_site.yaml", f"--on={URL}"]
    outcome = small.call(home, "train", "tiny", *site, *SETS[:2], "trainer.steps=3")
    assert outcome.code == 0, outcome
    assert "submitted tiny as tiny-1\none\ntwo\n" in outcome.out
    [job] = recorder.jobs
    added = ["runs=s3://site/runs", "name=tiny"]
    assert job.command == ["train", "tiny", *SETS[:2], "trainer.steps=3", *added]
    assert job.words("auto")[1:] == ["-P", "-m", "jobs", *job.command, "--on", "auto"]
    assert (job.runs, job.address) == ("s3://site/runs", URL)
    assert small.call(home, "train", "tiny", *site, *SETS, "name=b").code == 0
    assert recorder.jobs[1].command == ["train", "tiny", *SETS, "name=b"]


def test_a_dry_run_submits_nothing(home, recorder):
    weights = f"model.weights=/hub/snapshots/{'0123456789' * 4}"  # as Hugging Face names folders
    outcome = small.call(home, "train", "tiny", "--on", URL, "--dry-run", *SETS, weights)
    assert (outcome.code, recorder.jobs) == (0, [])
    assert outcome.out == f"would run {['train', 'tiny', *SETS, weights, 'name=tiny']}\n"
    assert submissions.every() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "tiny", "trainer.step=3", *SETS), "trainer.step is not a setting; did you mean"),
        (("train", "tinny", *SETS), "no preset 'tinny'"),
        (("train", "tiny", SETS[0]), "data.val is not set"),
        (("train", "tiny", *SETS, "data.val=shards/val"), "data.val=shards/val: the path is rel"),
        (("train", "tiny", *SETS, "runs=runs"), "runs=runs: the path is relative"),
        (("train", "tiny", *SETS, "runs=s4://b/runs"), "runs=s4://b/runs: "),
        (("train", "tiny", *SETS, "data.val=s3://me:hush@b"), "data.val: the URL holds a password"),
        (("evaluate", "https://me:hush@b/run"), "RUN: the URL holds a password"),
        (("train", "tiny", *SETS, "model.init_from=a/b"), "model.init_from=a/b: the path is"),
        (("train", "tiny", *SETS, "batch.size=1", "scaling.workers=2"), "are too few for"),
        (("train", "tiny", *SETS, "--site", "none.yaml"), "none.yaml"),
        (("build", "coco", "--root", "raw", "--out", "s3://b"), "--root raw: the path is relative"),
        (("evaluate", "mine"), "RUN mine: the path is relative"),
        (("predict", "s3://b/r", "a.jpg", "--out", "/o"), "IMAGES a.jpg: the path is relative"),
    ],
)
def test_a_mistake_is_found_before_anything_is_submitted(words, message, home, recorder):
    outcome = small.call(home, *words, "--on", URL)
    assert outcome.code == 2, outcome
    assert message in small.complaint(outcome)
    assert "hush" not in outcome.err
    assert recorder.jobs == []


@pytest.mark.parametrize(
    ("words", "name", "command"),
    [
        (
            ("evaluate", "mine", "--checkpoint", "last"),
            "mine-evaluate",
            ["evaluate", "s3://site/runs/mine", "--checkpoint", "last"],
        ),
        (
            ("predict", "/runs/mine", "/images", "--out", "/out"),
            "mine-predict",
            ["predict", "/runs/mine", "/images", "--out", "/out"],
        ),
        (
            ("build", "coco", "--root", "/raw", "--out", "s3://b/shards", "--on=auto"),
            "shards-build",
            ["build", "coco", "--root", "/raw", "--out", "s3://b/shards"],
        ),
    ],
)
def test_other_commands_are_submitted_too(words, name, command, home, recorder):
    (home / "site.yaml").write_text("runs: s3://site/runs\n")
    outcome = small.call(home, *words, "--on", URL)
    assert outcome.code == 0, outcome
    [job] = recorder.jobs
    assert (job.name, job.command) == (name, command)


def test_options_of_this_machine_are_removed():
    words = ["a", "--on", "x", "--json", "--site=y", "--on=z", "--dry-run", "b", "--", "--on", "c"]
    assert dispatch.without_options(words) == ["a", "--json", "b", "--", "--on", "c"]


def test_auto_is_the_cluster_of_the_site():
    site = sites.Site(ray=sites.RaySite(address="head:6379"))
    assert dispatch.target_of("auto", site) == Target("ray", "head:6379")
    assert dispatch.target_of("auto", sites.Site()) == Target()
    assert dispatch.target_of("local", site) == Target()


@pytest.mark.parametrize("code", [1, 2, 3, 75, 139])
def test_the_exit_code_of_the_job_is_that_of_the_command(code, home, recorder):
    recorder.answer = Status("stopped" if code == 75 else "failed", "a reason", code)
    outcome = small.call(home, "train", "tiny", "--on", URL, *SETS)
    assert outcome.code == (1 if code == 139 else code)
    assert "(a reason); its output: ./launch.sh logs tiny" in small.complaint(outcome)


def test_ctrl_c_leaves_the_job(home, recorder):
    recorder.answer = Status("running")
    recorder.ends.clear()
    recorder.output = ["one\n"]
    main = threading.main_thread().ident
    assert main is not None
    recorder.while_followed = partial(signal.pthread_kill, main, signal.SIGINT)
    outcome = small.call(home, "train", "tiny", "--on", URL, *SETS)
    assert outcome.code == 130, outcome
    assert "tiny continues to run; to come back: ./launch.sh logs -f tiny" in outcome.err
    assert recorder.stopped == []
    again = small.call(home, "train", "tiny", "--on", URL, *SETS)
    assert again.code == 2
    assert "tiny is submitted already, as tiny-1, and is running" in small.complaint(again)
    recorder.ends.set()


def test_a_submission_is_found_by_its_name(home, recorder):
    small.call(home, "train", "tiny", "--on", URL, *SETS)
    recorder.answer = Status("running", "on two hosts")
    outcome = small.call(home, "status", "--json")
    [row] = json.loads(outcome.out)
    assert (row["name"], row["state"], row["text"]) == ("tiny", "running", "on two hosts")
    assert row["command"].startswith("./launch.sh train tiny data.train=s3://b/train")
    assert small.call(home, "logs", "tiny").out == "one\ntwo\n"
    assert small.call(home, "stop", "tiny").code == 0
    assert recorder.stopped == ["tiny-1"]
    recorder.answer = Status("done", exit_code=0)
    ended = small.call(home, "stop", "tiny")
    assert (ended.code, recorder.stopped) == (2, ["tiny-1"])
    assert "tiny does not run: it is done" in small.complaint(ended)


def test_a_damaged_record_is_named_and_does_not_hide_the_others(home, recorder):
    submissions.save(Submission("a", "job", "a-1", ["train"]))
    path = submissions.folder() / "b.json"
    path.write_text('{"name": 1}')
    assert [one.name for one in submissions.every()] == ["a"]
    outcome = small.call(home, "status", "b")
    assert outcome.code == 2
    assert f"{path}: the record is damaged" in small.complaint(outcome)


def test_a_name_cannot_leave_the_folder_of_records(home):
    submissions.save(Submission("../../x", "job", "1", []))
    assert [path.parent for path in home.rglob("*x.json")] == [submissions.folder()]


def test_a_run_that_is_unknown_is_named(home):
    for command in ("status", "logs", "stop"):
        outcome = small.call(home, command, "nothing")
        assert outcome.code == 2
        assert "no run 'nothing'" in small.complaint(outcome)
    assert small.call(home, "status").out.startswith("nothing was submitted")


def test_a_local_run_is_described_followed_and_stopped(home, tmp_path_factory):
    small.untrained(home, small.photographs(tmp_path_factory.getbasetemp()))
    folder = home / "runs" / small.NAME
    [row] = json.loads(small.call(home, "status", small.NAME, "--json").out)
    assert (row["state"], row["where"]) == ("silent", str(folder))
    idle = small.call(home, "stop", small.NAME)
    assert idle.code == 2
    assert "small does not run: it is silent" in small.complaint(idle)
    with file_lock(folder / ".lock", wait=False):
        eventlog.append(folder, events.Start(world_size=2, step=0))
        assert small.call(home, "stop", small.NAME).code == 0
        assert stop.is_requested(folder)
        [row] = json.loads(small.call(home, "status", small.NAME, "--json").out)
        assert (row["state"], row["text"]) == ("running", f"step 0 of {small.STEPS}")
        eventlog.append(folder, events.Stopped(step=3, position=9))
    outcome = small.call(home, "logs", "-f", small.NAME)
    assert "attempt 1: 2 workers" in outcome.out
    assert outcome.out.endswith("step 3: stopped on request\n")
    [row] = json.loads(small.call(home, "status", small.NAME, "--json").out)
    assert row["state"] == "stopped"
    [row] = json.loads(small.call(home, "status", folder.as_uri(), "--json").out)
    assert (row["state"], row["where"]) == ("stopped", folder.as_uri())
