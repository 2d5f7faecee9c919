"""A run's settings: defaults < preset < key=value."""

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from model.settings import SettingError
from pipeline.settings import RunSettings
from shards.errors import UsageError
from shards.files import is_url, whole_file

PRESETS = Path(__file__).parent / "presets"
RUNS = Path("runs")


@dataclass
class ScalingSettings:
    """Number of workers (null: one for each GPU of this machine, or one), and whether each has a
    GPU (null: if this machine has one)."""

    workers: int | None = None
    gpu: bool | None = None


@dataclass
class FailureSettings:
    """How often workers that died are started again."""

    max_restarts: int = 20


@dataclass
class Config(RunSettings):
    """Everything a preset or the command line can set."""

    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    failure: FailureSettings = field(default_factory=FailureSettings)


def load(preset: str, overrides: list[str]) -> Config:
    """The config of a preset (its name, or a YAML file) with `key=value` overrides.

    Raises UsageError for unknown presets, keys and values; unknown keys with the nearest known.
    """
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in PRESETS.glob("*.yaml"))
        raise UsageError(
            f"no preset {preset!r}{_nearest(preset, known)}; known: {', '.join(known)}"
        )
    config = merge(_read(path), overrides)
    config.name = config.name or path.stem
    config.data.val = _absolute(config.data.val)
    config.data.train = _sets(config.data.train)
    if config.scaling.workers is None:
        gpus = 0 if config.scaling.gpu is False else torch.cuda.device_count()
        config.scaling.workers = max(1, gpus)
    if config.model.weights != "none":
        config.model.weights = _absolute(config.model.weights)
    if config.model.init_from != "none":  # a name under runs/, or a path
        run = RUNS / config.model.init_from
        is_run = (run / "config.yaml").is_file()
        config.model.init_from = _absolute(str(run) if is_run else config.model.init_from)
    return config


def merge(settings: dict[str, Any], overrides: list[str]) -> Config:
    """Defaults < settings < `key=value` overrides, typed. Raises UsageError naming the key."""
    parts = [{key: value} for key, value in settings.items()]
    parts += [_parse(override) for override in overrides]
    config = OmegaConf.structured(Config)
    known = _dotted(OmegaConf.to_container(config))
    section = ""
    try:
        for part in parts:
            section = str(next(iter(part)))
            config = OmegaConf.merge(config, part)
        return OmegaConf.to_object(config)
    except SettingError as error:
        named = [key for part in parts for key in flat(part) if key.endswith(error.key)]
        raise UsageError(f"{[error.key, *named][-1]}{error.what}; {error.fix}") from error
    except MissingMandatoryValue as error:
        name = error.full_key
        raise UsageError(
            f"{name} is not set; add {name}={name.replace('data.', 'SHARDS/')}"
        ) from error
    except OmegaConfBaseException as error:
        key = error.full_key or section
        if error.key is not None and key not in known and "not in" in str(error):
            raise UsageError(f"unknown key {key}{_nearest(key, known)}") from error
        raise UsageError(f"{key}: {str(error).splitlines()[0]}") from error


def _parse(override: str) -> dict[str, Any]:
    """The nested mapping of one `key=value`; the value is YAML."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise UsageError(f"{override!r} is not key=value")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{key}={value}: the value cannot be read; quote it, as YAML") from error


def to_dict(config: Config) -> dict[str, Any]:
    """Plain data; `merge(to_dict(c), [])` gives `c` back."""
    return dataclasses.asdict(config)


def save(config: Config, path: Path) -> None:
    """Write the resolved config."""
    with whole_file(path) as file:
        file.write(yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def run_folder(run: str) -> Path:
    """The folder of a run by name or path. Raises UsageError if there is none."""
    for folder in (Path(run), RUNS / run):
        if (folder / "config.yaml").is_file():
            return folder.absolute()
    known = sorted(path.parent.name for path in RUNS.glob("*/config.yaml"))
    raise UsageError(
        f"no run {run!r}{_nearest(run, known)}; runs: {', '.join(known) or 'none yet'}"
    )


def load_run(folder: Path) -> Config:
    """The resolved config of a run."""
    return merge(_read(folder / "config.yaml"), [])


def load_environment(folder: Path) -> dict[str, Any]:
    """What a run was started with, beside its config."""
    return json.loads((folder / "environment.json").read_text())


def differences(old: Config, new: Config, may_change: tuple[str, ...]) -> list[str]:
    """`key: old -> new` for every key that differs, but for those that start as `may_change`."""
    before, after = (flat(to_dict(config)) for config in (old, new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(may_change)
    ]


def _sets(train: Any) -> str | list[str]:
    if isinstance(train, list) and train and all(isinstance(path, str) for path in train):
        return [_absolute(path) for path in train]
    if not isinstance(train, str):
        raise UsageError(f"data.train={train}: give the folder of a shard set, or a list of them")
    return _absolute(train)


def _absolute(path: str) -> str:
    return path if is_url(path) else str(Path(path).expanduser().absolute())


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path}: not a mapping of settings")
    return settings


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    leaves = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _dotted(node: dict[str, Any]) -> list[str]:
    """Every key and section."""
    leaves = list(flat(node))
    sections = {leaf.rsplit(".", n)[0] for leaf in leaves for n in range(1, leaf.count(".") + 1)}
    return sorted({*leaves, *sections})
