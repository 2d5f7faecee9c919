"""Ray's start is tried again, its crash is one line, and no process of a session is left."""

import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from jobs import config as configs
from jobs import train
from jobs.interrupts import requests
from jobs.processes import descendants, end_descendants
from jobs.ray_session import STARTS, prepared, session
from jobs.stored import Home
from jobs.worker import Job
from shards.errors import Failed

SPAWN = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print('up', flush=True)"


def fail_first(log: Path, failures: int, how: str, folder: Path, cpus: int = 1) -> None:
    """Stand in for the start of Ray: the first starts fail. Each appends a byte to a file."""
    with log.open("a") as file:
        file.write(".")
    if log.stat().st_size > failures:
        return
    if how == "crash":
        os._exit(134)
    if how == "exit":
        sys.exit(1)
    raise Exception("The current node timed out during startup.\nThe log says more")


def done(config, job, private) -> str:
    return "done"


def crash(config, job, private) -> str:
    os._exit(134)


@pytest.fixture
def run(tmp_path, photographs, monkeypatch):
    """Return a function that runs workers, with a start of Ray that fails at first."""
    _, preset, *overrides = [
        *("train", "tiny", f"data.train={photographs / 'train'}"),
        *(f"data.val={photographs / 'val'}", "scaling.workers=1", "scaling.gpu=false"),
    ]
    config = configs.load(preset, overrides)
    requests.reset()

    def call(failures: int, how: str = "time out", workers=done) -> str:
        start = partial(fail_first, tmp_path / "starts", failures, how)
        monkeypatch.setattr(train, "run_workers", workers)
        home = Home(tmp_path)
        with home.lease() as lease:
            return train._run(config, Job({}, tmp_path, launch="1"), start, home, lease)

    return call


@pytest.mark.parametrize("how", ["time out", "exit", "crash"])
def test_a_start_that_fails_is_tried_again(run, tmp_path, capfd, how):
    assert run(STARTS - 1, how) == "done"
    assert (tmp_path / "starts").read_text() == "." * STARTS
    lines = [x for x in capfd.readouterr().err.splitlines() if x.startswith("Ray did not start (")]
    assert len(lines) == STARTS - 1


def test_after_three_starts_it_is_one_line(run):
    with pytest.raises(Failed) as caught:
        run(STARTS)
    assert str(caught.value).endswith(
        f"Ray did not start in {STARTS} attempts: The current node timed out during startup.; "
        "run the command again when the machine is less busy"
    )


def test_a_crash_of_ray_is_a_failed_run(run):
    assert run(0, workers=crash) == "failed"


def leave_processes(private: Path) -> str:
    for new_session in (False, True):
        command = [sys.executable, "-c", SPAWN]
        subprocess.run(command, start_new_session=new_session, check=True)
    return str(private)


@pytest.mark.parametrize("first", [nullcontext, prepared])
def test_a_session_leaves_no_process_and_no_folder(tmp_path, first):
    """Neither a process whose parent has died, nor one in a session of its own."""
    resource_tracker.ensure_running()
    before = descendants()
    start = partial(fail_first, tmp_path / "starts", 0, "time out")
    with first(), session(leave_processes, start) as ray:
        while ray.wait() and ray.message.state != "ended":
            pass
        private = Path(ray.message.text)
        assert private.parts
    assert descendants() - before == set()
    assert not private.exists()


def test_a_process_that_was_prepared_ends_without_a_session():
    resource_tracker.ensure_running()
    before = descendants()
    with prepared():
        assert len(descendants() - before) == 1
    assert descendants() - before == set()


def test_a_session_starts_beside_threads_that_hold_locks(tmp_path):
    """A forked process would wait without end for a lock that a thread held at that moment."""
    with LOCK, session(take_lock, partial(fail_first, tmp_path / "starts", 0, "")) as ray:
        while ray.wait() and ray.message.state != "ended":
            pass
        assert ray.message.text == "taken"


LOCK = threading.Lock()


def take_lock(private: Path) -> str:
    return "taken" if LOCK.acquire(timeout=60) else "held"


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
from functools import partial
from pathlib import Path
from jobs import ray_session

def body(note, private):
    import os, subprocess
    processes = [subprocess.Popen(["sleep", "600"]).pid, os.getpid()]
    Path(note).write_text(" ".join(map(str, [private, *processes])))
    time.sleep(600)

def start(folder):
    pass

if __name__ == "__main__":
    with ray_session.session(partial(body, sys.argv[1]), start) as ray:
        while ray.wait():
            pass
"""


def test_a_killed_command_leaves_nothing_either(tmp_path):
    note = tmp_path / "note"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, script, note], env=environment)
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
