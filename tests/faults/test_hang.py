"""A worker that waits for something that never comes: it ends, and says what it waited for."""

import subprocess
import sys

import pytest

from pipeline.run import eventlog, events
from pipeline.run.watchdog import EXIT_CODE, STACKS
from tests.distributed import free_port
from tests.jobs import small
from tests.pipeline.data.test_stages import HERE

pytestmark = pytest.mark.slow


def test_a_worker_that_hangs_ends_with_the_stacks_of_its_threads(tmp_path, photographs):
    _, *words = small.words(photographs, "scaling.workers=1", "tracking.wandb.mode=disabled")
    words += [f"data.stages=[{HERE}:hang]", "trainer.hang_timeout_s=25"]
    run = tmp_path / "run"
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench.loop", str(run), *words],
        env=small.environment(**group, MASTER_PORT=str(free_port())),
        capture_output=True,
        text=True,
        timeout=small.TIMEOUT_S,
    )
    assert done.returncode == EXIT_CODE, done.stderr
    (failure,) = eventlog.read_kind(run, events.Failure)
    assert "in the phase 'data'" in failure.what
    stacks = (run / STACKS / "attempt-01-rank-0.txt").read_text()
    assert "in hang" in stacks  # the stage that does not return
    assert "in hang" in done.stderr  # for a disk that hangs
