"""The facts about a cluster that a user writes once: a typed YAML file, checked as a config is."""
# ruff: noqa: RUF009 (`setting` returns a dataclasses.field, so that no default is shared)

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.secret import holds_secret, is_secret_name
from jobs.values import construct, join, read_yaml
from model.settings import SettingError, Settings, is_settings, setting
from shards.errors import UsageError

VARIABLE = "M2F_SITE"
_VARIABLE_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?"
_QUANTITY_HELP = "write a number with a unit of Kubernetes, such as 500m or 16Gi"
_K8S_NAME = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_K8S_NAME_HELP = "write lower-case letters, digits, and hyphens"
_SECRET_FIX = (
    "keep secrets out of the site file: set them on the nodes, or refer to a Secret of Kubernetes"
)


@dataclass
class RaySite(Settings):
    """A Ray cluster that runs already."""

    address: str = setting("", "Address that `--on auto` joins if RAY_ADDRESS is not set.")
    python: str = setting("python", "Python of the nodes, for a submitted job.")
    env: dict[str, str] = setting({}, "Environment variables of a submitted job; Ray shows them.")
    env_file: str = setting(
        "",
        "File on the head with NAME=VALUE lines, such as secrets, that a submitted job reads.",
        pattern=r"(/\S+)?",
        pattern_help="write an absolute path",
    )
    stop_s: int = setting(
        600,
        "Time that a submitted job has to write a checkpoint before Ray kills it.",
        unit="seconds",
        at_least=1,
    )

    def check(self) -> None:
        """Check the names of the variables."""
        _check_names("env", self.env, _VARIABLE_NAME)


@dataclass
class SlurmSite(Settings):
    """Jobs of SLURM. A null is left to SLURM's own default."""

    partition: str = setting("", "Partition (`--partition`).")
    account: str = setting("", "Account (`--account`).")
    qos: str = setting("", "Quality of service (`--qos`).")
    time: str = setting(
        "", "Time limit of a job (`--time`), such as 24:00:00; a run is requeued when it ends."
    )
    nodes: int = setting(1, "Number of nodes (`--nodes`).", unit="nodes", at_least=1)
    gpus_per_node: int | None = setting(
        None, "GPUs of each node (`--gpus-per-node`).", unit="GPUs", at_least=0
    )
    cpus_per_node: int | None = setting(
        None, "CPUs of each node; null reserves whole nodes.", unit="CPUs", at_least=1
    )
    memory: str = setting("", "Memory of each node (`--mem`), such as 200G.")
    grace_s: int = setting(
        300,
        "Time before the limit at which a checkpoint is written and the job is requeued.",
        unit="seconds",
        at_least=30,
    )
    modules: list[str] = setting([], "Environment modules to load.")
    setup: list[str] = setting(
        [], "Shell lines before the command; all nodes inherit their environment."
    )
    env: dict[str, str] = setting({}, "Environment variables of the job.")
    container: str = setting("", "Container image (`--container-image` of pyxis).")
    container_mounts: list[str] = setting(
        [], "Mounts of the container, as `HOST_PATH:CONTAINER_PATH`."
    )
    sbatch: list[str] = setting([], "Other options of sbatch, such as `--constraint=h100`.")

    def check(self) -> None:
        """Check the names of the variables and the options of sbatch."""
        _check_names("env", self.env, _VARIABLE_NAME)
        for option in self.sbatch:
            if not re.fullmatch(r"--[a-z][a-z0-9-]*(=[^\n]*)?", option):
                raise SettingError(
                    "sbatch", f"={option}", "write options as --NAME or --NAME=VALUE"
                )


@dataclass
class HeadSite(Settings):
    """The pod of Ray's head, which runs the command and no worker."""

    cpus: str = setting("2", "CPUs.", pattern=_QUANTITY, pattern_help=_QUANTITY_HELP)
    memory: str = setting("8Gi", "Memory.", pattern=_QUANTITY, pattern_help=_QUANTITY_HELP)
    node_selector: dict[str, str] = setting(
        {}, "Labels of the nodes that may run the head, which must not be spot nodes."
    )
    tolerations: list[str] = setting([], "Tolerated taints, as `KEY=VALUE:EFFECT` or `KEY:EFFECT`.")

    def check(self) -> None:
        """Check the taints."""
        _check_tolerations(self.tolerations)


@dataclass
class KubeRaySite(Settings):
    """RayJobs on Kubernetes."""

    namespace: str = setting(
        "default", "Namespace.", pattern=_K8S_NAME, pattern_help=_K8S_NAME_HELP
    )
    context: str = setting("", "Context of kubectl; empty: the current one.")
    image: str = setting("", "Container image with Python, Ray, and our requirements.")
    code: str = setting(
        "/opt/mask2former",
        "Path of this checkout in the image, or URL of a zip of it, which Ray downloads.",
        pattern=r"/\S+|[a-z0-9]+://\S+\.zip",
        pattern_help="write an absolute path, or a URL that ends in .zip",
    )
    python: str = setting("python", "Python in the image.")
    cpus: str = setting(
        "8", "CPUs of a worker pod.", pattern=_QUANTITY, pattern_help=_QUANTITY_HELP
    )
    memory: str = setting(
        "64Gi", "Memory of a worker pod.", pattern=_QUANTITY, pattern_help=_QUANTITY_HELP
    )
    gpus: int = setting(1, "GPUs of a worker pod.", unit="GPUs", at_least=0)
    workers_min: int = setting(1, "Smallest number of worker pods.", unit="pods", at_least=0)
    workers_max: int = setting(1, "Largest number of worker pods.", unit="pods", at_least=1)
    head: HeadSite = setting(HeadSite, "The pod of Ray's head, which runs the command.")
    mounts: dict[str, str] = setting(
        {}, "Persistent volume claims to mount in all pods, as `PATH: CLAIM`."
    )
    env: dict[str, str] = setting({}, "Environment variables of all pods.")
    secrets: dict[str, str] = setting(
        {}, "Environment variables from Secrets, as `NAME: SECRET/KEY`; values are never written."
    )
    shm: str = setting(
        "16Gi", "Size of /dev/shm, in memory.", pattern=_QUANTITY, pattern_help=_QUANTITY_HELP
    )
    grace_s: int = setting(
        600,
        "Time that a pod has to write a checkpoint before Kubernetes kills it.",
        unit="seconds",
        at_least=30,
    )
    backoff_limit: int = setting(
        3, "Number of times that the whole cluster is restarted after the head is lost.", at_least=0
    )
    ttl_s: int = setting(
        300,
        "Time that the pods of a finished job are kept, and its output with them.",
        unit="seconds",
        at_least=0,
    )
    service_account: str = setting("", "Service account of the pods.")
    pull_secret: str = setting("", "Name of the Secret that pulls the image.")
    node_selector: dict[str, str] = setting({}, "Labels of the nodes that may run worker pods.")
    tolerations: list[str] = setting([], "Tolerated taints, as `KEY=VALUE:EFFECT` or `KEY:EFFECT`.")
    auth: str = setting(
        "token",
        "Access to Ray: token (KubeRay makes one), or disabled for operators before 1.5.1.",
        choices=("token", "disabled"),
    )

    def check(self) -> None:
        """Check the numbers of workers and the parts of mappings."""
        if self.workers_min > self.workers_max:
            fix = "raise workers_max, or lower workers_min"
            raise SettingError("workers_min", f"={self.workers_min} exceeds workers_max", fix)
        _check_names("env", self.env, _VARIABLE_NAME)
        _check_names("secrets", self.secrets, _VARIABLE_NAME)
        for name, source in self.secrets.items():
            if not re.fullmatch(rf"{_K8S_NAME}/[-._a-zA-Z0-9]+", source):
                fix = "write NAME: SECRET/KEY, where SECRET is the name of a Secret of Kubernetes"
                raise SettingError(f"secrets.{name}", " does not refer to a Secret", fix)
        _check_names("mounts", self.mounts, r"/\S+")
        for path, claim in self.mounts.items():
            if not re.fullmatch(_K8S_NAME, claim):
                raise SettingError(f"mounts.{path}", f"={claim}", _K8S_NAME_HELP)
        _check_tolerations(self.tolerations)


@dataclass
class Site(Settings):
    """The facts about a cluster; see the site file in docs/cluster.md."""

    runs: str = setting("", "Folder or URL of all runs: the default of the setting `runs`.")
    ray: RaySite = setting(RaySite, "A Ray cluster that runs already.")
    slurm: SlurmSite = setting(SlurmSite, "Jobs of SLURM. An empty value leaves it to SLURM.")
    kuberay: KubeRaySite = setting(KubeRaySite, "RayJobs on Kubernetes.")

    def check(self) -> None:
        """Check that no value looks like a secret."""
        for key, name, text in _texts(self):
            if (name and is_secret_name(name)) or holds_secret(text):
                raise SettingError(key, " looks like a secret", _SECRET_FIX)


def load(path: Path | None) -> Site:
    """Return the site of a file, or of the first default file that exists, or the defaults.

    Raises:
        UsageError: The file does not exist, a key is unknown, or a value is refused.
    """
    found = path or next((default for default in defaults() if default.is_file()), None)
    if found is None:
        return Site()
    try:
        return construct(Site, read_yaml(found))
    except SettingError as error:
        lists = "docs/settings.md lists the keys of a site"
        fix = lists if error.what == " is not a setting" and "mean" not in error.fix else error.fix
        raise UsageError(f"{error.key}{error.what}", where=found, fix=fix) from error


def defaults() -> Iterator[Path]:
    """Yield the files that are read without `--site`. One that $M2F_SITE names has to exist."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise UsageError("the file does not exist", where=f"{VARIABLE}={named}")
        yield Path(named)
    yield Path("site.yaml")
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    yield Path(home, "mask2former", "site.yaml")


def _texts(settings: Settings, section: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the key, the name of the variable if it is one, and the text of every text."""
    for field in dataclasses.fields(settings):  # pyright: ignore[reportArgumentType] (all are)
        value, key = getattr(settings, field.name), join(section, field.name)
        if is_settings(type(value)):
            yield from _texts(value, key)
        elif isinstance(value, dict):
            is_env = field.name == "env"
            yield from ((f"{key}.{name}", name * is_env, text) for name, text in value.items())
        else:
            entries: list[Any] = value if isinstance(value, list) else [value]
            yield from ((key, "", entry) for entry in entries if isinstance(entry, str))


def _check_names(key: str, mapping: dict[str, str], pattern: str) -> None:
    for name in mapping:
        if not re.fullmatch(pattern, name):
            raise SettingError(f"{key}.{name}", " has a wrong name", f"it must match {pattern}")


def _check_tolerations(tolerations: list[str]) -> None:
    for taint in tolerations:
        if not re.fullmatch(r"[^\s=:]+(=[^\s:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)", taint):
            fix = "write KEY=VALUE:EFFECT or KEY:EFFECT, such as nvidia.com/gpu:NoSchedule"
            raise SettingError("tolerations", f"={taint}", fix)
