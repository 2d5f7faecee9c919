"""The site file: its values, its default paths, and what it refuses."""

import pytest

from jobs.cluster import site as sites
from jobs.cluster.site import Site
from shards.errors import UsageError

FULL = """
runs: s3://bucket/runs
ray:
  address: head:6379
  env: {NCCL_DEBUG: INFO}
slurm:
  partition: gpu
  nodes: 2
  modules: [cuda/12.4]
  setup: ["source /shared/env.sh"]
  env: {OMP_NUM_THREADS: 08, AWS_SHARED_CREDENTIALS_FILE: /home/me/.aws}
  sbatch: [--constraint=h100]
kuberay:
  image: registry.example/mask2former:1
  workers_max: 4
  head: {node_selector: {cloud.example/spot: "false"}}
  mounts: {/data: shards}
  secrets: {WANDB_API_KEY: wandb/api-key}
  tolerations: nvidia.com/gpu:NoSchedule
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home and working directory, and no default site file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(sites.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder, text, name="my_site.yaml"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_whole_file_is_read(home):
    site = sites.load(written(home, FULL))
    assert site.runs == "s3://bucket/runs"
    assert site.slurm.env["OMP_NUM_THREADS"] == "08"  # text as it is written
    assert site.kuberay.head.node_selector == {"cloud.example/spot": "false"}
    assert site.kuberay.head.memory == "8Gi"  # the default
    assert site.kuberay.tolerations == ["nvidia.com/gpu:NoSchedule"]


def test_the_first_of_the_default_files_is_read(home, monkeypatch):
    assert sites.load(None) == Site()
    for name in ("config/mask2former/site.yaml", "site.yaml", "named.yaml"):
        written(home, f"runs: of-{name}", name)
        if name == "named.yaml":
            monkeypatch.setenv(sites.VARIABLE, str(home / name))
        assert sites.load(None).runs == f"of-{name}"
    assert sites.load(written(home, "runs: given")).runs == "given"
    monkeypatch.setenv(sites.VARIABLE, "nothing.yaml")
    with pytest.raises(UsageError, match=r"M2F_SITE=nothing\.yaml: the file does not exist"):
        sites.load(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slurm: {partion: gpu}", "slurm.partion is not a setting; did you mean slurm.partition"),
        ("zzz: 1", "zzz is not a setting; docs/settings.md lists the keys of a site"),
        ("slurm: {nodes: two}", "slurm.nodes=two; it must be a whole number"),
        ("slurm: {env: {A: [1]}}", "slurm.env.A=.*; it must be text"),
        ("slurm: {env: {a b: x}}", "slurm.env.a b has a wrong name"),
        ("slurm: {sbatch: [rm -rf]}", "slurm.sbatch=rm -rf; write options as --NAME"),
        ("kuberay: {memory: 64 gigs}", "kuberay.memory=64 gigs; write a number with a unit"),
        ("kuberay: {workers_min: 3}", "kuberay.workers_min=3 exceeds workers_max"),
        ("kuberay: {mounts: {data: claim}}", "kuberay.mounts.data has a wrong name"),
        ("kuberay: {secrets: {A: abc}}", "kuberay.secrets.A does not refer to a Secret"),
        ("kuberay: {tolerations: gpu}", "kuberay.tolerations=gpu; write KEY=VALUE:EFFECT"),
        ("[1]", "not a mapping of settings"),
        ("runs: *a", "alias"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_fix(text, message, home):
    path = written(home, text)
    with pytest.raises(UsageError, match=message) as caught:
        sites.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_is_named(home):
    with pytest.raises(UsageError, match=r"none\.yaml"):
        sites.load(home / "none.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "slurm: {env: {WANDB_API_KEY: abc}}",
        "ray: {env: {HF_TOKEN: abc}}",
        "kuberay: {env: {AWS_SECRET_ACCESS_KEY: abc}}",
        "slurm: {setup: [export WANDB_API_KEY=abc]}",
        "slurm: {sbatch: ['--export=ALL,MY_PASSWORD=abc']}",
        f"slurm: {{setup: [wandb login {'0123456789' * 4}]}}",
        "slurm: {env: {X: AKIAIOSFODNN7EXAMPLE}}",
        "runs: s3://key:value@bucket/runs",
        "slurm: {env: {X: '-----BEGIN RSA'}}",
    ],
)
def test_a_secret_is_refused_and_not_repeated(text, home):
    with pytest.raises(UsageError, match="looks like a secret; keep secrets out") as caught:
        sites.load(written(home, text))
    for secret in ("abc", "0123456789", "AKIA", "key:value", "RSA"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "export WANDB_API_KEY=$(cat ~/.wandb)",
        'export HF_TOKEN="$MINE"',
        "export AWS_SHARED_CREDENTIALS_FILE=/home/me/.aws",
        "source /shared/secrets.sh",
    ],
)
def test_a_reference_to_a_secret_is_accepted(line, home):
    assert sites.load(written(home, f"slurm: {{setup: ['{line}']}}")).slurm.setup == [line]
