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


@pytest.fixture(scope="module")
def hung(tmp_path_factory, photographs):
    """Train on two ranks, of which the second hangs; return the folder and both processes."""
    folder = tmp_path_factory.mktemp("hung")
    _, *words = small.words(photographs, "tracking.wandb.mode=disabled")
    words += [f"data.stages=[{HERE}:hang_on_one_rank]", "trainer.hang_timeout_s=25"]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "jobs.bench.loop", str(folder / f"run-{rank}"), *words],
            env=small.environment(RANK=str(rank), LOCAL_RANK=str(rank), **group),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=small.TIMEOUT_S)[1] for process in processes]
    return folder, [process.returncode for process in processes], errors


def test_a_worker_that_hangs_ends_with_the_stacks_of_its_threads(hung):
    folder, codes, errors = hung
    assert codes[1] == EXIT_CODE, errors[1]
    (failure,) = eventlog.read_kind(folder / "run-1", events.Failure)
    assert "in the phase 'data'" in failure.what
    stacks = (folder / "run-1" / STACKS / "attempt-01-rank-1.txt").read_text()
    assert "in hang_on_one_rank" in stacks  # the stage that does not return
    assert "in hang_on_one_rank" in errors[1]  # for a disk that hangs


def test_both_workers_end_if_one_hangs(hung):
    """The first waits in an all-reduce, until its own watchdog ends it or the second is gone."""
    _, codes, errors = hung
    assert codes[0] != 0
    assert "sum_on_hosts" in errors[0]
