"""What hosts say is compared with the driver and with the needs of a run."""

from dataclasses import replace

import pytest

from jobs.cluster.findings import Finding, merged, refuse, report
from jobs.cluster.judge import Host, judge
from jobs.cluster.needs import Needs
from shards.errors import DataError, Failed, UsageError

NEEDS = Needs(
    workers=4,
    gpu=False,
    cpus=2,
    shm_bytes=8 << 20,
    open_files=500,
    remote=("s3://b/train",),
    cache_bytes=10 << 30,
    parameters=10,
    checkpoint_bytes=1 << 30,
    checkpoints=4,
    step_bytes=2 << 30,
    processes_bytes=1 << 30,
)
MACHINE = {
    "cores": 8,
    "memory": 64 << 30,
    "memory_free": 60 << 30,
    "load": 1.0,
    "open_files": 65536,
    "shm": 8 << 30,
    "shm_free": 8 << 30,
    "interface": "eth0",
    "chosen_interfaces": {},
}
ROOM = {"path": "/x", "free": 100 << 30, "shards": 0, "is_usable": True}
SET = {"fingerprint": "a" * 64, "bytes": 20 << 30, "index_bytes": 1 << 20}
ANSWERS = {
    "versions": {"Python": "3.11.7", "torch": "2.13.0", "rich": "15.0"},
    "code": {"jobs/train.py": "1", "jobs/check.py": "2"},
    "machine": MACHINE,
    "cache": ROOM,
    "work": ROOM,
    "runs": True,
    "weights": "1234",
    "set s3://b/train": SET,
}
GPU = {"name": "H100", "memory": 80 << 30, "free": 79 << 30}
DEVICES = {"torch": "2.13.0+cu130", "nccl": "2.28.9", "gpus": [GPU, GPU]}
DRIVER = Host("here", ANSWERS)


def host(name: str = "h2", devices: dict | None = None, **answers: object) -> Host:
    """Return a host whose answers differ from those of the driver as given."""
    return Host(name, ANSWERS | answers, devices or DEVICES, workers=4)


def only(hosts: list[Host], needs: Needs = NEEDS) -> Finding:
    """Return the only finding about hosts."""
    (finding,) = judge(hosts, DRIVER, needs)
    assert finding.what
    assert finding.fix
    return finding


def test_equal_hosts_are_fine():
    assert judge([host("h1"), host("h2")], DRIVER, NEEDS) == []
    assert judge([host("h1"), host("h2")], DRIVER, replace(NEEDS, gpu=True)) == []


@pytest.mark.parametrize(
    ("answers", "level", "words"),
    [
        ({"versions": ANSWERS["versions"] | {"torch": "2.12.0"}}, "error", "torch 2.12.0 is"),
        ({"versions": ANSWERS["versions"] | {"rich": "14.0"}}, "warning", "here has 15.0"),
        ({"versions": {"Python": "3.11.7", "torch": "2.13.0"}}, "error", "no rich is installed"),
        ({"code": ANSWERS["code"] | {"jobs/train.py": "3"}}, "error", "1 files: jobs/train.py"),
        ({"set s3://b/train": SET | {"fingerprint": "b" * 64}}, "error", "bbbbbbbbbbbb instead of"),
        ({"weights": "4321"}, "error", "the weights differ from those of here"),
        ({"runs": False}, "error", "a file that here has written"),
        ({"machine": MACHINE | {"shm_free": 31 << 20}}, "error", "need 32 MiB"),
        ({"machine": MACHINE | {"open_files": 256}}, "error", "may open 256 files, but needs 500"),
        ({"machine": MACHINE | {"load": 17.0}}, "warning", "the load is 17 on 8 cores"),
        ({"machine": MACHINE | {"memory": 4 << 30}}, "warning", "4 workers take about 12 GiB"),
        (
            {"machine": MACHINE | {"chosen_interfaces": {"NCCL_SOCKET_IFNAME": "=lo"}}},
            "error",
            "NCCL_SOCKET_IFNAME==lo",
        ),
        ({"cache": ROOM | {"is_usable": False}}, "error", "data.cache.folder=/x cannot be written"),
        ({"cache": ROOM | {"free": 1 << 10}}, "error", "but the indices take 1 MiB"),
        ({"cache": ROOM | {"free": 1 << 30}}, "warning", "can hold 1 GiB of 10 GiB of shards"),
        ({"work": ROOM | {"is_usable": False}}, "error", "/x cannot be written"),
        ({"work": ROOM | {"free": 1 << 20}}, "error", "but a checkpoint takes 1 GiB"),
        ({"work": ROOM | {"free": 2 << 30}}, "warning", "but 4 checkpoints take 4 GiB"),
        ({"runs": UsageError("no bucket", where="s3://b")}, "error", "s3://b: no bucket"),
        ({"code": Failed("boom", where="code", fix="look")}, "error", "code: boom"),
    ],
)
def test_a_difference_is_one_finding(answers, level, words):
    finding = only([host("h1"), host(**answers)])
    assert finding.hosts == ("h2",)
    assert (finding.level, words in finding.what) == (level, True), finding


@pytest.mark.parametrize(
    ("devices", "level", "words"),
    [
        ({"gpus": []}, "error", "torch 2.13.0+cu130 sees no GPU"),
        ({"gpus": [GPU]}, "error", "Ray has 2 GPUs there, but torch sees 1"),
        ({"gpus": [GPU, GPU | {"free": 8 << 30}]}, "warning", "GPU 1 has only 8 GiB of 80 GiB"),
        ({"nccl": "2.27.3"}, "error", "h1: 2.28.9; h2: 2.27.3"),
        ({"gpus": [GPU | {"name": "A100"}] * 2}, "warning", "h1: H100; h2: A100"),
        ({"gpus": [GPU | {"memory": 1 << 30, "free": 1 << 30}] * 2}, "warning", "the H100 has 1 G"),
    ],
)
def test_gpus_are_compared(devices, level, words):
    other = host(devices=DEVICES | devices)
    other.gpus = 2
    finding = only([host("h1"), other], replace(NEEDS, gpu=True))
    assert "h2" in finding.hosts
    assert (finding.level, words in finding.what) == (level, True), finding


@pytest.mark.parametrize(
    ("ahead", "error", "level"), [(90, 1, "error"), (-30, 1, "warning"), (90, 40, "warning")]
)
def test_a_clock_may_be_off_by_less_than_a_minute(ahead, error, level):
    other = host()
    other.clock_s, other.clock_error_s = ahead, error
    finding = only([other])
    assert finding.level == level
    assert f"{abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'}" in finding.what


def test_a_process_without_an_answer_and_a_stage_without_a_module_are_findings():
    other = host()
    other.devices = Failed("no answer in 22 s")
    assert only([other]).what == "torch does not answer: no answer in 22 s"
    other = host()
    other.stages = [{"what": "No module named 'x'", "where": "data.stages=x:y", "fix": ""}]
    assert only([other]).what == "data.stages=x:y: No module named 'x'"
    other.stages = Failed("the process died (SIGSEGV)")
    assert only([other]).what == "data.stages: the process died (SIGSEGV)"


def test_equal_findings_name_all_hosts_and_errors_come_first(capsys):
    slow = Finding(("h1",), "slow", "wait", "warning")
    full = [Finding((name,), "full", "free space") for name in ("h1", "h2", "h1")]
    found = merged([slow, *full])
    report(found)
    assert capsys.readouterr().out.splitlines() == [
        "error: h1, h2: full; free space",
        "warning: h1: slow; wait",
        "1 error and 1 warning",
    ]
    refuse([slow])
    with pytest.raises(UsageError, match="preflight found 1 error on h1, h2"):
        refuse(found)


def test_only_wrong_data_is_an_error_of_data():
    data = Finding.of("h1", DataError("the shard is missing", where="/x/000.tar", fix="copy it"))
    with pytest.raises(DataError):
        refuse([data])
    with pytest.raises(UsageError):
        refuse([data, Finding(("h1",), "full", "free space")])
