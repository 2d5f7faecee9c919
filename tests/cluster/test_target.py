"""The option --on, the code that is sent, and the size of a cluster."""

import platform
import subprocess
from pathlib import Path

import pytest

from jobs import config as configs
from jobs.check import check_fits
from jobs.cluster import package, ray_cluster
from jobs.cluster.ray_cluster import Node, Variables, check_shared, interface_of, nodes
from jobs.cluster.target import Target
from jobs.worker import threads_per_worker
from shards.errors import UsageError
from tests.jobs import small


@pytest.mark.parametrize(
    ("text", "kind", "address"),
    [
        ("local", "local", ""),
        ("10.0.0.1:6379", "ray", "10.0.0.1:6379"),
        ("head-0.cluster:6379", "ray", "head-0.cluster:6379"),
        ("[fe80::1]:6379", "ray", "[fe80::1]:6379"),
        ("ray://head:10001", "ray", "ray://head:10001"),
        ("http://head:8265", "job", "http://head:8265"),
        ("https://head/ray/", "job", "https://head/ray"),
        ("slurm", "slurm", ""),
        ("kuberay", "kuberay", ""),
    ],
)
def test_a_target_is_named_by_a_word_or_an_address(text, kind, address):
    target = Target.parse(text)
    assert (target.kind, target.address) == (kind, address)
    assert target.cluster == (address if kind == "ray" else None)
    assert str(target) == (address or kind)


@pytest.mark.parametrize("text", ["", "nowhere", "Slurm", "host", "host:port", "ftp://host:21"])
def test_another_target_is_an_error_that_names_the_known_ones(text):
    with pytest.raises(UsageError, match=r"local, auto, HOST:PORT .* slurm, or kuberay"):
        Target.parse(text)


def test_auto_is_the_cluster_of_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert Target.parse("auto") == Target("ray", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "what")
    with pytest.raises(UsageError, match="RAY_ADDRESS=what: is not known"):
        Target.parse("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    assert Target.parse("auto") == Target("local")
    assert not Target.parse("auto").is_submitted


def write(root, files):
    for name, size in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def content(root: Path) -> dict[Path, bytes]:
    """Return the files of a checkout that are sent."""
    return {path: (root / path).read_bytes() for path in package.files(root)}


@pytest.mark.parametrize("is_repository", [True, False])
def test_the_code_is_what_git_does_not_ignore(tmp_path, is_repository):
    root = tmp_path / "checkout"
    sizes = {"jobs/__main__.py": 1, "model/net": 2, "jobs/runs": 1, "docs/x/y": 3}
    write(root, {**sizes, "runs/a/big": 9, "jobs/__pycache__/main.pyc": 1, ".cache/x": 1})
    (root / ".gitignore").write_text("/runs/\n__pycache__/\n/.cache*\n")
    if is_repository:
        subprocess.run(["git", "init", "-q", str(root)], check=True)
    names = {path.as_posix() for path in package.files(root)}
    assert names == {*sizes, ".gitignore"}
    before = content(root)
    copied = package.copy_code(tmp_path, root)
    assert content(copied) == before
    write(root, {"runs/a/big": 10})
    assert content(root) == before
    write(root, {"model/net": 3})
    assert content(root) != before


def test_code_that_is_too_large_is_refused_with_the_sizes(tmp_path):
    write(tmp_path, {"jobs/a": 10, "data/weights": 3 * 2**20})
    with pytest.raises(UsageError, match=r"3\.0 MiB, more .* data/weights \(3\.0 MiB\), jobs/a"):
        package.copy_code(tmp_path / "out", tmp_path, limit=2**20)
    assert not (tmp_path / "out").exists()


def test_the_code_of_this_checkout_is_complete():
    names = {path.as_posix() for path in package.files()}
    assert {"jobs/__main__.py", "launch.sh", "jobs/presets/tiny.yaml", "constraints.txt"} <= names


@pytest.mark.parametrize(
    ("changes", "cpus", "gpus", "message"),
    [
        (["scaling.workers=4"], 2, 0, None),
        (["scaling.workers=4", "data.loader_workers=1"], 2, 0, "suffice for 2 workers .* 2 each"),
        (["scaling.workers=4", "scaling.gpu=null"], 2, 1, "has only 2 of the GPUs that 4 workers"),
        (["scaling.workers=null", "scaling.gpu=null"], 2, 2, None),
    ],
)
def test_a_cluster_has_to_have_what_the_workers_reserve(changes, cpus, gpus, message, tmp_path):
    _, preset, *overrides = small.words(tmp_path, *changes)
    config = configs.load(preset, overrides, gpus=2 * gpus)
    nodes = [Node("h1", "10.0.0.1", cpus, gpus), Node("h2", "10.0.0.2", cpus, gpus)]
    if message:
        with pytest.raises(UsageError, match=message):
            check_fits(config, nodes, config.scaling.workers or 1)
    else:
        check_fits(config, nodes, config.scaling.workers or 1)
        assert config.scaling.workers == 4


def test_variables_are_forwarded_by_name_and_never_shown(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")
    variables = Variables.forwarded()
    assert variables.values["AWS_SECRET_ACCESS_KEY"] == "planted"
    assert not any(name.startswith(("RAY_", "HOME")) for name in variables.values)
    assert "planted" not in repr(variables)


def test_an_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"--on 127\.0\.0\.1:1: no Ray cluster answers \(.*refused\); start it"),
        ("no-such-host.invalid:6379", "no Ray cluster answers"),
        ("ray://127.0.0.1:1", "only build runs from a client outside the cluster; give HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line(address, message):
    with pytest.raises(UsageError, match=message) as caught:
        nodes(address)
    assert len(str(caught.value).splitlines()) == 1


def test_another_version_of_ray_is_one_line():
    raised = RuntimeError(
        "Version mismatch: The cluster was started with:\n  Ray: 2.9\n  Python: 3"
    )
    with (
        pytest.raises(UsageError, match=r"Ray: 2\.9 Python: 3; install the cluster's versions"),
        ray_cluster._one_line("10.0.0.1:6379"),
    ):
        raise raised


def test_a_path_that_a_node_does_not_have_is_named_with_the_node(tmp_path):
    check_shared([tmp_path])
    with pytest.raises(UsageError, match=rf"{platform.node()}; give a folder that all nodes share"):
        check_shared([tmp_path / "other"])


def test_the_threads_of_a_node_are_shared_by_its_workers(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    assert [threads_per_worker(None, workers) for workers in (1, 4, 24)] == [12, 3, 1]
    assert threads_per_worker(5, 4) == 5
