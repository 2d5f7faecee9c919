"""A range of workers: which ranges are refused, how many are started, and when more take over."""

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from jobs import config as configs
from jobs import elastic
from jobs.check import check_fits
from jobs.cluster.ray_cluster import Node
from jobs.elastic import FittingWorkers, MoreWorkers
from shards.errors import UsageError

RANGE = ("scaling.workers=3", "scaling.min_workers=2", "batch.size=8", "batch.micro=2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["scaling.min_workers=4"], "scaling.min_workers=4 is greater than scaling.workers=3"),
        (["zero.stage=3"], "scaling.min_workers=2 with zero.stage=3"),
        (["model.norm=batch"], "batch.micro=2 x scaling.workers=3"),  # 2 would divide the batch
        (["scaling.workers=9"], "too few for scaling.workers=9"),
        (["scaling.min_workers=0"], "it must be at least 1"),
    ],
)
def test_a_range_that_cannot_train_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        configs.merge({}, [*RANGE, *changes])


def test_a_run_starts_with_the_smallest_number_of_workers():
    assert configs.merge({}, RANGE).fewest_workers == 2
    assert configs.merge({}, ["scaling.workers=3"]).fewest_workers == 3


def test_a_cluster_that_is_too_small_for_the_smallest_number_is_refused():
    config = configs.merge({}, [*RANGE, "data.loader_workers=0"])
    check_fits(config, cluster(1, 1), config.fewest_workers)
    with pytest.raises(UsageError, match=r"scaling\.min_workers=2: .*suffice for 1 workers"):
        check_fits(config, cluster(1), config.fewest_workers)


def cluster(*cpus: int) -> list[Node]:
    return [Node(f"h{number}", f"10.0.0.{number}", n, 0) for number, n in enumerate(cpus, 1)]


@pytest.fixture
def policy(monkeypatch) -> FittingWorkers:
    """Return the policy of 2 to 5 workers that reserve 2 CPUs each."""
    monkeypatch.setattr(FittingWorkers, "_maybe_send_resource_request", lambda _: None)
    monkeypatch.setattr(elastic, "POLL_S", 0)
    return FittingWorkers(ScalingConfig(num_workers=(2, 5), resources_per_worker={"CPU": 2}))


@pytest.mark.parametrize(
    ("cpus", "workers"), [((2,), None), ((3, 2), 2), ((4, 2, 1), 3), ((9, 9), 5), ((), None)]
)
def test_as_many_workers_start_as_fit_on_the_living_nodes(policy, monkeypatch, cpus, workers):
    monkeypatch.setattr(elastic, "living_nodes", lambda: cluster(*cpus))
    decision = policy.make_decision_for_non_running_worker_group()
    if workers is None:
        assert isinstance(decision, NoopDecision)
    else:
        assert isinstance(decision, ResizeDecision)
        assert decision.num_workers == workers
        assert decision.resources_per_worker == {"CPU": 2}
    running = policy.make_decision_for_running_worker_group(None, None)
    assert isinstance(running, NoopDecision)


def test_workers_that_do_not_start_are_counted_by_what_is_free(policy, monkeypatch):
    monkeypatch.setattr(elastic, "living_nodes", lambda: cluster(4, 4))
    monkeypatch.setattr(elastic, "free_nodes", lambda: cluster(4, 1))
    decide = policy.make_decision_for_non_running_worker_group
    assert [decide().num_workers for _ in range(3)] == [4, 2, 2]
    policy.make_decision_for_running_worker_group(None, None)
    assert decide().num_workers == 4


@pytest.mark.parametrize(
    ("now", "free", "count"),
    [(1, (), None), (1, (1,), None), (1, (2,), 2), (1, (2, 5), 4), (4, (8, 8), 5), (5, (8,), None)],
)
def test_more_workers_take_over_if_more_are_free(monkeypatch, now, free, count):
    monkeypatch.setattr(elastic, "free_nodes", lambda: cluster(*free))
    more = MoreWorkers(now, most=5, cpus=2, use_gpu=False)
    assert (more(), more.count) == (count, count)
