"""Presets: YAML files of settings, each of which may extend another one by its key `base`."""

import re
from pathlib import Path
from typing import Any

from jobs.values import combined, nearest, read_yaml
from shards.errors import UsageError

PRESETS = Path(__file__).parent / "presets"
BASES = PRESETS / "bases"  # what several presets share; cannot be trained
BASE = "base"


def names() -> list[str]:
    """Return the names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(preset: str) -> Path:
    """Return the file of a preset.

    Raises:
        UsageError: The preset does not exist.
    """
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        fix = nearest(preset, names()) or "docs/presets.md lists them, such as coco_panoptic_r50"
        raise UsageError(f"no preset {preset!r}", fix=fix)
    return path


def read_preset(preset: str) -> dict[str, Any]:
    """Return the settings of a preset, with those of its bases that it does not replace.

    Args:
        preset: The name or the path.

    Raises:
        UsageError: The preset or a base does not exist or cannot be read, or the bases form a
            cycle.
    """
    path = preset_path(preset)
    layers, chain = [], [path]
    while (base := (settings := read_yaml(path)).pop(BASE, None)) is not None:
        layers.append(settings)
        path = _base_path(base, path)
        if path in chain:
            cycle = " -> ".join(found.stem for found in [*chain[chain.index(path) :], path])
            raise UsageError(f"its bases form a cycle: {cycle}", where=chain[0])
        chain.append(path)
    return combined([settings, *reversed(layers)])


def _base_path(name: Any, path: Path) -> Path:
    """Return the file that the key `base` of the file at `path` names."""
    for folder in (BASES, PRESETS):
        if re.fullmatch(r"\w+", str(name)) and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = [*names(), *(found.stem for found in BASES.glob("*.yaml"))]
    fix = nearest(str(name), known) or "write the name of a preset, such as coco_panoptic_r50"
    raise UsageError(f"no preset or base {str(name)!r}", where=f"{path}: {BASE}", fix=fix)
