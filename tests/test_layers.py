"""Imports between packages and topics point one way, and files and functions stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shards", "model", "pipeline", "jobs")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

# Topic -> topics that it may import. A topic is a folder, such as shards/format. The modules
# directly in shards/ and pipeline/ are divided further: `shards` and `pipeline` are those that the
# folders below them use, `shards/top` and `pipeline/top` those that use the folders. The settings
# of the pipeline are a topic of their own, because every other topic reads them.
SPLIT = {
    "pipeline/settings": {
        *("pipeline/settings.py", "pipeline/data/settings.py", "pipeline/run/settings.py"),
    },
    "shards/top": {"shards/verify.py", "shards/verify_shard.py", "shards/inspect.py"},
    "pipeline/top": {"pipeline/train.py"},
}
SHARDS = {"shards", "shards/format"}
MODEL = {"model", "model/weights"}
MAY_IMPORT = {
    "shards": set(),
    "shards/format": {"shards"},
    "shards/raw": SHARDS,
    "shards/sources": SHARDS | {"shards/raw"},
    "shards/build": SHARDS | {"shards/raw", "shards/sources"},
    "shards/top": SHARDS,
    "model": {"model/kernels"},
    "model/kernels": {"model"},
    "model/weights": {"model"},
    "pipeline/settings": SHARDS | {"model"},
    "pipeline": {"shards"},
    "pipeline/data": SHARDS | {"model", "pipeline"},
    "pipeline/step": {"shards", "model", "model/kernels", "pipeline", "pipeline/data"},
    "pipeline/score": SHARDS | {"model", "pipeline", "pipeline/data"},
    "pipeline/run": SHARDS
    | MODEL
    | {"pipeline", "pipeline/data", "pipeline/step", "pipeline/score"},
    "pipeline/pictures": SHARDS | {"model", "pipeline", "pipeline/data", "pipeline/score"},
    "pipeline/top": SHARDS
    | MODEL
    | {"pipeline", "pipeline/data", "pipeline/step", "pipeline/score", "pipeline/run"}
    | {"pipeline/pictures"},
}
# Library -> the only files or folders that may import it.
LIBRARIES = {
    "ray": ("jobs/",),
    "deepspeed": ("pipeline/step/engine.py", "pipeline/step/cpu_helper.py"),
    "wandb": ("pipeline/run/wandb_",),
}
FORBIDDEN = {"shards": {"torch", "transformers"}}

FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)


def topic_of(file: str) -> str:
    """Return the topic of a file of the four packages."""
    for topic, files in SPLIT.items():
        if file in files:
            return topic
    parts = file.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 and parts[0] != "jobs" else parts[0]


def imports(file: str) -> set[str]:
    """Return the dotted names of all modules that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found = {name for name in submodules if file_of(name)}
            names |= found or {node.module}
    return names


def file_of(module: str) -> str | None:
    """Return the file of one of our modules, or None."""
    path = module.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if candidate in FILES:
            return candidate
    return None


@pytest.mark.parametrize("file", FILES)
def test_imports_point_one_way(file):
    topic = topic_of(file)
    modules = imports(file)
    ours = {topic_of(found) for module in modules if (found := file_of(module))}
    if topic != "jobs":
        settings = {"pipeline/settings"} if topic.startswith("pipeline") else set()
        assert ours <= MAY_IMPORT[topic] | settings | {topic}, file
    libraries = {module.split(".")[0] for module in modules}
    assert not libraries & FORBIDDEN.get(file.split("/")[0], set())
    for library, homes in LIBRARIES.items():
        assert library not in libraries or file.startswith(homes), f"{library} in {file}"


def test_no_two_modules_import_each_other():
    graph = {file: {file_of(module) for module in imports(file)} - {None} for file in FILES}
    while leaves := [file for file, needed in graph.items() if not needed & graph.keys() - {file}]:
        for file in leaves:
            del graph[file]
    assert not graph, f"circular imports among {sorted(graph)}"


@pytest.mark.parametrize("file", FILES)
def test_files_and_functions_are_small(file):
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            assert node.end_lineno - start < MAX_FUNCTION_LINES, f"{file}: {node.name}"


def test_the_top_level_packages_are_the_agreed_ones():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {*PACKAGES, "tests"}
