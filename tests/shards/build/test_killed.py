"""Builds that are killed at random points and run again end with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.build.build import build
from tests.shards.build.test_build import tree
from tests.shards.raw import sky, write

ROOT = Path(__file__).parents[3]
SHARDS = 4
FILES = 3 * SHARDS  # tar, idx and receipt of each
KILLS = 5


def fork(raw: Path, out: Path, jobs: int) -> int:
    """Build in a child process that leads a session, and return its process id."""
    if pid := os.fork():
        return pid
    os.setsid()
    build("coco", raw, out, shards=SHARDS, jobs=jobs, report=lambda _: None)
    os._exit(0)


def progress(out: Path) -> int:
    """Return the number of finished files of a build, 0 before the first shard is complete."""
    names = [path.name for path in out.glob("val/**/*") if path.is_file()]
    whole = [name for name in names if name[0].isdigit() and ".tmp-" not in name]
    return len(whole) if any(name.endswith(".json") for name in whole) else 0


def wait_for_workers(session: int) -> None:
    """Wait until every process of a killed build has ended."""
    for _ in range(1000):
        stats = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                stats.append(path.read_text().rpartition(")")[2].split())
            except (FileNotFoundError, ProcessLookupError):
                continue
        if not any(int(stat[3]) == session and stat[0] != "Z" for stat in stats):
            return
        time.sleep(0.01)
    raise AssertionError("workers outlive their build")


def rounds(raw: Path, folder: Path, kills: int) -> list[tuple[int, int, bool]]:
    """Kill builds with 1, 2, 4, 1, … processes.

    Returns:
        Per build: the number of processes, the progress at the kill, and whether the next run
        completed it to the same bytes.
    """
    os.waitpid(fork(raw, folder / "reference", 1), 0)
    expected, draw, done = tree(folder / "reference"), random.Random(0), []
    while len(done) < kills:
        out, jobs = folder / f"{time.monotonic_ns()}", (1, 2, 4)[len(done) % 3]
        moment, pause = draw.randint(1, FILES - 2), draw.uniform(0, 0.01)
        pid = fork(raw, out, jobs)
        while progress(out) < moment and not (out / "val/manifest.json").exists():
            time.sleep(0.004)
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        wait_for_workers(pid)
        seen = progress(out)
        if (out / "val/manifest.json").exists():  # too late; draw another moment
            continue
        os.waitpid(fork(raw, out, 1), 0)
        done.append((jobs, seen, tree(out) == expected))
    return done


@pytest.mark.slow
def test_builds_killed_at_random_moments_end_as_the_same_bytes(tmp_path):
    raw = write(tmp_path / "raw", [sky(f"{n}.png", (192, 144)) for n in range(16)])
    program = (
        "import json, sys; from pathlib import Path;"
        "from tests.shards.build.test_killed import rounds;"
        "print(json.dumps(rounds(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))"
    )
    command = [sys.executable, "-c", program, raw, tmp_path, str(KILLS)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
    outcomes = json.loads(made.stdout)
    assert len(outcomes) == KILLS
    assert all(seen > 0 and same for _, seen, same in outcomes), outcomes
