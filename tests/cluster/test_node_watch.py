"""A cluster that has lost nodes is given some time, and the user knows."""

import pytest

from jobs.cluster.node_watch import NodeWatch
from jobs.cluster.ray_cluster import Node
from shards.errors import Failed

NODES = [Node("h1", "10.0.0.1", 2, 0), Node("h2", "10.0.0.2", 2, 0)]


def test_nodes_that_come_back_in_time_are_no_error():
    said = []
    watch = NodeWatch(lambda nodes: 2 * len(nodes), 4, limit_s=60, tell=said.append)
    watch.check(NODES, 0)
    assert said == []
    for now in (10, 30, 69):
        watch.check(NODES[:1], now)
    assert said == [
        "the cluster has nodes for only 2 of 4 workers (h1); training waits up to 60 s for others"
    ]
    watch.check(NODES, 75)
    assert said[1:] == ["the cluster has enough nodes again"]
    watch.check(NODES[:1], 100)
    watch.check(NODES[:1], 159)


def test_nodes_that_stay_away_end_the_command_with_the_numbers():
    watch = NodeWatch(lambda nodes: 2 * len(nodes), 4, limit_s=60, tell=lambda _: None)
    watch.check(NODES[:1], 10)
    with pytest.raises(Failed, match=r"nodes for only 2 of 4 workers \(h1\) since 60 s; start Ray"):
        watch.check(NODES[:1], 71)
