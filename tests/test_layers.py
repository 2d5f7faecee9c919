"""The arrows of the house: shards and model know nobody, pipeline knows both, jobs knows all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "shards": {"shards"},
    "model": {"model"},
    "pipeline": {"pipeline", "model", "shards"},
    "jobs": {"jobs", "pipeline", "model", "shards"},
}
ROOMS = {
    "ray": "jobs/",
    "deepspeed": ("pipeline/step/engine.py", "pipeline/step/cpu_helper.py"),
    "wandb": "pipeline/run/track.py",
}
FORBIDDEN = {"shards": {"torch", "transformers"}}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of every import in the file, wherever it stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    place = path.relative_to(ROOT).as_posix()
    package = place.split("/")[0]
    names = imported(path)
    assert names & set(MAY_IMPORT) <= MAY_IMPORT[package]
    assert not names & FORBIDDEN.get(package, set())
    for library, room in ROOMS.items():
        assert library not in names or place.startswith(room), f"{library} outside {room}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_room(path):
    assert len(path.read_text().splitlines()) <= 400


def test_top_level_is_the_agreed_one():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {"jobs", "model", "pipeline", "shards", "tests"}
