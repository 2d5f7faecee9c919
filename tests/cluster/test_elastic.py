"""One run on 1, 3, 2, and 5 workers as nodes join and leave: the same samples and losses.

The workers wait for a gate in front of each step, so that nothing here depends on their speed.
"""

import time
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.data.stream import order_of, train_sets
from pipeline.run import eventlog, events
from pipeline.run.track import METRICS
from pipeline.train import train
from shards.jsonl import rows
from tests import distributed
from tests.cluster import hosts as of_hosts
from tests.cluster.hosts import hosts, ray_cluster
from tests.jobs import small

pytestmark = pytest.mark.slow
RUN = Path("runs") / small.NAME
STEPS, LIMIT_S = 12, 300
STAGES = "[tests.pipeline.stages_for_tests:gated,tests.pipeline.stages_for_tests:recorded]"
CHANGES = (
    f"trainer.steps={STEPS}",
    "checkpoint.every_steps=1",
    "scaling.threads=1",
    "scaling.workers=5",
    "tracking.wandb.mode=disabled",
)


def metrics(folder: Path) -> list[dict]:
    return [row for row in rows(folder / METRICS) if "loss" in row]


def fixed(config, folder: Path) -> list[float]:
    """Return the losses of a run that one process trains."""
    folder.mkdir()
    train(config, folder)
    return [row["loss"] for row in metrics(folder)]


class Elastic:
    """A run whose workers take the steps that the test allows.

    Args:
        command: The command.
        folder: Where it runs.
    """

    def __init__(self, command, folder: Path):
        self._command, self._folder = command, folder
        self._step = 0

    def allow(self, step: int) -> None:
        self._step = step
        (self._folder / "gate").write_text(str(step * small.GLOBAL_BATCH))

    def wait_for(self, condition) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert self._command.poll() is None, self._command.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def worlds(self) -> list[int]:
        starts = eventlog.read_kind(self._folder / RUN, events.Start)
        return [start.world_size for start in starts]

    def take_a_step_on(self, workers: int) -> None:
        """Allow one step after the other until this number of workers has taken one."""
        while not any(row["world_size"] == workers for row in metrics(self._folder / RUN)):
            self.allow(self._step + 1)
            self.wait_for(self._is_taken)

    def _is_taken(self) -> bool:
        return any(row["step"] >= self._step for row in metrics(self._folder / RUN))


def test_a_run_on_1_3_2_and_5_workers_is_the_fixed_run(photographs, tmp_path, monkeypatch):
    monkeypatch.setitem(of_hosts.RAY_ENVIRONMENT, "RAY_health_check_period_ms", "1000")
    folder = tmp_path / "elastic"
    folder.mkdir()
    words = [*small.words(photographs, *CHANGES, f"data.stages={STAGES}")]
    seen = {"M2F_TEST_GATE": str(folder / "gate"), "M2F_TEST_FOLDER": str(folder)}
    with hosts(4) as made, ray_cluster(made[:1], cpus=1) as cluster:
        words += ["scaling.min_workers=1", "--on", cluster.address]
        command = made[0].jobs(*words, cwd=folder, env=cluster.access | seen)
        run = Elastic(command, folder)
        run.allow(1)
        run.wait_for(lambda: metrics(folder / RUN))
        for host in made[1:3]:
            cluster.start_node(host)
        cluster.wait(3)
        run.take_a_step_on(3)
        made[2].kill_processes()
        run.wait_for(lambda: run.worlds()[-1] != 3)
        run.take_a_step_on(2)
        cluster.wait(2)
        cluster.start_node(made[3], cpus=3)
        cluster.wait(3)
        run.take_a_step_on(5)
        run.allow(STEPS)
        outcome = small.finish(command)
    assert outcome.code == 0, outcome.err
    worlds = run.worlds()
    assert [world for n, world in enumerate(worlds) if world != worlds[n - 1]] == [1, 3, 2, 5]
    assert "waiting for 1 to 5 workers" in outcome.out
    assert "3 workers fit, and take over" in outcome.out

    config = small.config(photographs, *CHANGES)
    (losses,) = distributed.run(fixed, 1, config, tmp_path / "fixed", fork=True)
    assert len(losses) == STEPS
    assert [row["loss"] for row in metrics(folder / RUN)] == pytest.approx(losses, rel=1e-5)
    sets = train_sets(config.data)
    order = order_of(sets, config.data, config.seed)
    seen_by_epoch = defaultdict(set)
    for line in {line for path in folder.glob("seen-*") for line in path.read_text().splitlines()}:
        position, epoch, key = line.split()
        ref = order.at(int(position))
        assert (int(epoch), key) == (ref.epoch, sets[ref.set].index.key[ref.sample])
        seen_by_epoch[int(epoch)].add((int(position), key))
    assert sum(map(len, seen_by_epoch.values())) == STEPS * small.GLOBAL_BATCH
    *whole, _ = (sorted(key for _, key in seen_by_epoch[epoch]) for epoch in sorted(seen_by_epoch))
    assert all(epoch == sorted(sets[0].index.key) for epoch in whole)
