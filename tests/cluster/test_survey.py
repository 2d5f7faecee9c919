"""Hosts that connect, but cannot add a tensor, are named in pairs."""

from types import SimpleNamespace

import pytest

from jobs.cluster.ray_cluster import Node
from jobs.cluster.survey import _connect, names_of
from shards.errors import Failed

ADDRESSES = {"h1": "10.0.0.1", "h2": "10.0.0.2", "h3": "10.0.0.3"}


class Team:
    """Stands in for the actors: some pairs cannot connect, and some cannot add tensors."""

    def __init__(self, blocked: set, apart: set, hosts=tuple(ADDRESSES)):
        self.actors, self.blocked, self.apart = dict.fromkeys(hosts), blocked, apart
        self.meetings = []

    def ask(self, calls: dict, limit_s: float) -> dict:
        answers = {}
        members = {name for name, (method, _) in calls.items() if method == "ask"}
        self.meetings += [members] if members else []
        for name, (method, arguments) in calls.items():
            if method in ("serve", "free_port"):
                assert arguments == (ADDRESSES[name],)
                answers[name] = 30000
            elif method == "reach":
                found = {host for host in arguments[0] if (name, host) in self.blocked}
                answers[name] = dict.fromkeys(found, "timed out")
            else:
                request, values, _ = arguments
                assert (request, values["world"]) == ("meet", len(members))
                failed = any(pair <= members for pair in self.apart)
                answers[name] = Failed("connection reset") if failed else values["world"]
        return answers


def connect(team: Team) -> list:
    job = SimpleNamespace(left=lambda limit_s, reserve_s=0: limit_s)
    addresses = {name: ADDRESSES[name] for name in team.actors}
    return _connect(job, team, addresses, gpu=False)


def test_hosts_that_add_a_tensor_are_fine():
    team = Team(set(), set())
    assert connect(team) == []
    assert team.meetings == [set(ADDRESSES)]


def test_a_blocked_direction_is_named_before_any_meeting():
    team = Team({("h3", "h1")}, set())
    (finding,) = connect(team)
    assert finding.hosts == ("h3", "h1")
    assert finding.what == "h3 cannot connect to h1 (10.0.0.1, port 30000): timed out"
    assert team.meetings == []


def test_the_pair_that_fails_is_named():
    team = Team(set(), {frozenset({"h1", "h3"})})
    (finding,) = connect(team)
    assert finding.hosts == ("h1", "h3")
    assert finding.what.startswith("h1 and h3 cannot add a tensor with gloo: h1: connection reset")
    assert "GLOO_SOCKET_IFNAME" in finding.fix
    assert len(team.meetings) == 4


def test_a_pair_alone_meets_once():
    team = Team(set(), {frozenset({"h1", "h2"})}, hosts=("h1", "h2"))
    (finding,) = connect(team)
    assert finding.hosts == ("h1", "h2")
    assert len(team.meetings) == 1


def test_one_host_meets_nobody():
    assert connect(Team(set(), set(), hosts=("h1",))) == []


@pytest.mark.parametrize(
    ("hosts", "names"), [(("a", "b"), ["a", "b"]), (("a", "a"), ["a (10.0.0.0)", "a (10.0.0.1)"])]
)
def test_equal_hostnames_are_told_apart(hosts, names):
    nodes = [Node(host, f"10.0.0.{index}", 1, 0) for index, host in enumerate(hosts)]
    assert list(names_of(nodes)) == names
