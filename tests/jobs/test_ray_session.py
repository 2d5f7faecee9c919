"""Ray's start is tried again, its crash is one line, and no process of a session is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import config as configs
from jobs import ray_session, train
from jobs.interrupts import requests
from jobs.processes import descendants, end_descendants
from jobs.ray_session import STARTS, session
from jobs.worker import Job
from shards.errors import Failed

SPAWN = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print('up', flush=True)"


@pytest.fixture
def run(tmp_path, photographs, monkeypatch):
    """Return a function that runs workers which are done at once."""
    _, preset, *overrides = [
        *("train", "tiny", f"data.train={photographs / 'train'}"),
        *(f"data.val={photographs / 'val'}", "scaling.workers=1", "scaling.gpu=false"),
    ]
    config = configs.load(preset, overrides)
    requests.reset()
    monkeypatch.setattr(train, "run_workers", lambda config, job, private: "done")
    return lambda: train._run(config, Job({}, tmp_path, 1, launch="1"), 1)


def starts(monkeypatch, log: Path, failures: int, fail) -> None:
    """Let the first starts of Ray fail. Each appends a byte to a file."""

    def start(folder, cpus):
        with log.open("a") as file:
            file.write(".")
        if log.stat().st_size <= failures:
            fail()

    monkeypatch.setattr(ray_session, "_start", start)


def time_out():
    raise Exception("The current node timed out during startup.\nThe log says more")


@pytest.mark.parametrize("fail", [time_out, lambda: sys.exit(1), lambda: os._exit(134)])
def test_a_start_that_fails_is_tried_again(run, tmp_path, monkeypatch, capfd, fail):
    starts(monkeypatch, tmp_path / "starts", STARTS - 1, fail)
    assert run() == "done"
    assert (tmp_path / "starts").read_text() == "." * STARTS
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == STARTS - 1
    assert all(line.startswith("Ray did not start (") for line in lines)


def test_after_three_starts_it_is_one_line(run, tmp_path, monkeypatch):
    starts(monkeypatch, tmp_path / "starts", STARTS, time_out)
    with pytest.raises(Failed) as caught:
        run()
    assert str(caught.value).endswith(
        f"Ray did not start in {STARTS} attempts: The current node timed out during startup.; "
        "run the command again when the machine is less busy"
    )


def test_a_crash_of_ray_is_a_failed_run(run, tmp_path, monkeypatch):
    starts(monkeypatch, tmp_path / "starts", 0, time_out)
    monkeypatch.setattr(train, "run_workers", lambda config, job, private: os._exit(134))
    assert run() == "failed"


def test_a_session_leaves_no_process_and_no_folder(monkeypatch, tmp_path):
    """Neither a process whose parent has died, nor one in a session of its own."""
    starts(monkeypatch, tmp_path / "starts", 0, time_out)
    before = descendants()

    def body(private: Path) -> str:
        for new_session in (False, True):
            command = [sys.executable, "-c", SPAWN]
            subprocess.run(command, start_new_session=new_session, check=True)
        return str(private)

    with session(body, 1) as ray:
        while ray.wait() and ray.message.state != "ended":
            pass
        private = Path(ray.message.text)
        assert private.parts
    assert descendants() - before == set()
    assert not private.exists()


def test_the_processes_that_were_there_before_stay():
    mine = subprocess.Popen(["sleep", "600"])
    other = subprocess.Popen(["sleep", "600"])
    end_descendants(spared=descendants() - {other.pid})
    assert mine.poll() is None
    mine.kill()
    mine.wait()
    assert other.wait() is not None


DRIVER = """
import sys, time
from pathlib import Path
from jobs import ray_session

def body(private):
    import os, subprocess
    processes = [subprocess.Popen(["sleep", "600"]).pid, os.getpid()]
    Path(sys.argv[1]).write_text(" ".join(map(str, [private, *processes])))
    time.sleep(600)

ray_session._start = lambda folder, cpus: None
with ray_session.session(body, 1) as ray:
    while ray.wait():
        pass
"""


def test_a_killed_command_leaves_nothing_either(tmp_path):
    note = tmp_path / "note"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, note], env=environment)
    until = time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < until
        time.sleep(0.1)
    private, *processes = note.read_text().split()
    driver.kill()
    driver.wait()

    def is_gone(process: str) -> bool:
        try:
            stat = Path(f"/proc/{process}/stat").read_text()
        except FileNotFoundError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"

    while Path(private).exists() or not all(map(is_gone, processes)):
        assert time.monotonic() < until
        time.sleep(0.1)
