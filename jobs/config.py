"""The settings of a run: defaults, replaced by those of a preset, then by key=value."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from jobs.locations import RUNS, absolute, run_or_path, runs_location
from jobs.preset import preset_path, read_preset
from jobs.scaling import FailureSettings, ScalingSettings
from jobs.values import combined, construct, nearest, read_override, read_yaml
from model.settings import SettingError, setting
from pipeline.data.split import split_of
from pipeline.settings import RunSettings
from shards.errors import UsageError
from shards.files import is_url, read_json, whole_file
from shards.remote import RemoteFolder

ENVIRONMENT = "environment.json"
UNMEASURED = ""  # batch.measured_on until batch.micro=auto is resolved


@dataclass
class Config(RunSettings):
    """Everything that a preset or the command line can set."""

    scaling: ScalingSettings = setting(ScalingSettings, "Workers of the run.")  # noqa: RUF009
    failure: FailureSettings = setting(FailureSettings, "Restarts.")  # noqa: RUF009

    def check(self) -> None:
        """Check that the workers can share the batch."""
        super().check()
        self.scaling.check_range()
        if self.scaling.min_workers is not None and self.zero.stage == 3:
            raise SettingError(
                "scaling.min_workers",
                f"={self.scaling.min_workers} with zero.stage=3, whose checkpoints fit one number "
                "of workers only",
                "write zero.stage=2, or leave scaling.min_workers out",
            )
        if self.batch.measured_on == UNMEASURED and self.depends_on_micro_batches:
            raise SettingError(
                "batch.micro",
                "=auto: with model.norm=batch or sync_batch, or criterion.class_normalizer=local, "
                "the size of a micro-batch changes what is learned",
                "write a number",
            )
        for workers in range(self.fewest_workers, (self.scaling.workers or 0) + 1):
            split_of(self, workers)

    @property
    def fewest_workers(self) -> int:
        """Number of workers without which the run does not start."""
        return self.scaling.min_workers or self.scaling.workers or 1


def load(
    preset: str, overrides: Sequence[str], gpus: int | None = None, *, needs_data: bool = True
) -> Config:
    """Return the config of a preset (its name, or a YAML file) with `key=value` overrides.

    Paths become absolute, and the name and the number of workers are filled in.

    Args:
        preset: The name or the path.
        overrides: The overrides.
        gpus: Number of GPUs of the cluster; None counts those of this machine if necessary.
        needs_data: Whether data.train and data.val must be set.

    Raises:
        UsageError: The preset or a key is unknown, or a value is missing or refused.
    """
    config = read(preset, overrides) if needs_data else merge(read_preset(preset), overrides)
    with _usage_errors():
        return _resolved(config, preset_path(preset).stem, gpus)


def read(preset: str, overrides: Sequence[str]) -> Config:
    """Return the config of a preset with overrides as it is written, for another machine.

    Raises:
        UsageError: The preset or a key is unknown, or a value is missing or refused.
    """
    config = merge(read_preset(preset), overrides)
    for field in dataclasses.fields(config.data):
        if field.metadata["rule"].required and not getattr(config.data, field.name):
            key = f"data.{field.name}"
            fix = f"add {key}=SHARDS/{field.name}"
            if field.name == "val":
                fix += (
                    "; if there is no such set, build one from other images, in a split of its own"
                )
            raise UsageError(f"{key} is not set", fix=fix)
    return config


def merge(settings: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """Return the config: defaults, replaced by `settings`, then by `key=value` overrides.

    Raises:
        UsageError: An override is not key=value, a key is unknown, or a value is refused.
    """
    with _usage_errors():
        parts = [settings, *(read_override(override, Config) for override in overrides)]
        values = combined(parts)
        batch = values.get("batch")
        if isinstance(batch, dict) and batch.get("micro") == "auto":
            values["batch"] = {**batch, "micro": 1, "measured_on": UNMEASURED}
        return construct(Config, values)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except SettingError as error:
        raise UsageError(f"{error.key}{error.what}", fix=error.fix) from error


def _resolved(config: Config, name: str, gpus: int | None) -> Config:
    data = replace(
        config.data,
        train=[absolute(location) for location in config.data.train],
        val=absolute(config.data.val) if config.data.val else "",
    )
    model = replace(
        config.model,
        weights=absolute(config.model.weights),
        init_from=absolute(run_or_path(config.model.init_from, config.runs)),
    )
    workers = config.scaling.workers or _default_workers(config.scaling, gpus)
    scaling = replace(config.scaling, workers=workers)
    named = replace(config, name=config.name or name, runs=runs_location(config.runs))
    return replace(named, data=data, model=model, scaling=scaling)


def _default_workers(scaling: ScalingSettings, gpus: int | None) -> int:
    if scaling.gpu is False:
        return 1
    if gpus is not None:
        return max(1, gpus)
    import torch  # takes seconds; imported here so that a wrong setting is reported sooner

    return max(1, torch.cuda.device_count())


def to_dict(config: Config) -> dict[str, Any]:
    """Return plain data; `merge(to_dict(config), [])` gives the config back."""
    return dataclasses.asdict(config)


def save(config: Config, path: Path) -> None:
    """Write the resolved config as YAML."""
    with whole_file(path) as file:
        file.write(yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def run_folder(run: str) -> Path:
    """Return the folder of a run by name or path.

    Raises:
        UsageError: The run does not exist.
    """
    for folder in (Path(run), RUNS / run):
        if (folder / "config.yaml").is_file():
            return folder.absolute()
    known = sorted(path.parent.name for path in RUNS.glob("*/config.yaml"))
    fix = nearest(run, known) or f"the runs are {', '.join(known)}" if known else ""
    raise UsageError(f"no run {run!r}", fix=fix or "start one with ./launch.sh train")


def check_run(run: str) -> None:
    """Check that a run exists, by name, path, or URL, without the seconds that torch takes.

    Raises:
        UsageError: It does not.
        Failed: The storage does not answer.
    """
    if not is_url(run):
        run_folder(run)
    elif RemoteFolder(run).info("config.yaml") is None:
        raise UsageError("no run is there", where=run, fix="give the URL of a run's folder")


def load_run(folder: Path) -> Config:
    """Return the resolved config of a run."""
    settings = read_yaml(folder / "config.yaml")
    batch = settings.get("batch")
    if isinstance(batch, dict) and "global" in batch:  # batch.size was batch.global until 0.1
        batch["size"] = batch.pop("global")
    return merge(settings, [])


def load_environment(folder: Path) -> dict[str, Any]:
    """Return what a run was started with besides its config.

    Older versions wrote the fingerprint of a single train set instead of a list of one.

    Raises:
        UsageError: The file is missing or damaged.
    """
    path = folder / ENVIRONMENT
    try:
        environment = read_json(path)
        train, val = (environment["data"][name] for name in ("train", "val"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        fix = "resume the run with ./launch.sh train, which writes it again"
        raise UsageError(f"the record of the run's data {problem}", where=path, fix=fix) from error
    train = [train] if isinstance(train, str) else train
    return {**environment, "data": {"train": train, "val": val}}


def differences(old: Config, new: Config, may_change: tuple[str, ...]) -> list[str]:
    """Return `key: old -> new` for each key that differs and starts with none of `may_change`."""
    before, after = (flat(to_dict(config)) for config in (old, new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(may_change)
    ]


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    leaves = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
