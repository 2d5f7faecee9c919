"""The commands in the documents parse, their Python runs, and the files that they name exist."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

from jobs import config as configs
from jobs.__main__ import app
from jobs.bench import report
from jobs.check import check
from jobs.cluster import site
from jobs.faults import Faults
from jobs.inputs import FETCH
from jobs.preset import PRESETS as FOLDER
from jobs.values import keys
from tests.jobs import small
from tests.pipeline.score.test_compare import evaluated

ROOT = Path(__file__).parents[1]
PRESETS = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}
PAGES = ("README.md", "CONTRIBUTING.md", "AGENTS.md", *(f"docs/{page}.md" for page in (
    "benchmarks", "cluster", "cluster-kuberay", "cluster-ray", "cluster-slurm", "data", "design",
    "evaluation", "export", "faults", "model", "plan", "predict", "preflight", "presets",
    "recovery", "report", "storage", "try", "watch",
)))  # fmt: skip
DOCUMENTS = {name: (ROOT / name).read_text() for name in PAGES}
COMMANDS = typer.main.get_command(app).commands
LAUNCHER_COMMANDS = {"setup", "test"}  # launch.sh runs these itself


def fenced(text: str) -> list[str]:
    """Return the lines of a document's `sh` blocks, without comments and redirections."""
    text = text.replace("\\\n", "")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = (re.sub(r"\s+[#>].*", "", line) for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


def test_the_python_of_the_readme_is_part_of_that_of_the_page_of_predict():
    """A test of predictions runs the page of predict."""
    parts = [
        re.findall(r"```python\n(.*?)```", DOCUMENTS[name], re.DOTALL)
        for name in ("README.md", "docs/predict.md")
    ]
    (readme,), (page,) = parts
    code = [{line.partition("  #")[0] for line in text.splitlines()} for text in (readme, page)]
    assert code[0] <= code[1]


def test_the_python_of_the_model_page_runs():
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTS["docs/model.md"], re.DOTALL)
    found = {}
    exec(compile(code, "docs/model.md", "exec"), found)
    assert found["loss"].isfinite()
    assert all(p.grad is not None for p in found["net"].parameters())


def test_the_python_of_the_evaluation_page_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTS["docs/evaluation.md"], re.DOTALL)
    record, scores = evaluated(0)
    (path,) = re.findall(r'Path\("(.+?)"\)', code)
    (tmp_path / path).parent.mkdir(parents=True)
    record.save(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    assert capsys.readouterr().out.startswith(f"{scores['PQ']}\n")


def headers() -> list[tuple[str, str]]:
    """Return (preset, command) for every command of this project in the header of a preset."""
    return [
        (name, line.lstrip("# "))
        for name, text in PRESETS.items()
        for line in text.splitlines()
        if re.match(r"#\s+(\./launch\.sh|\.venv/)", line)
    ]


TYPED = [(name, line) for name, text in DOCUMENTS.items() for line in fenced(text)] + headers()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    shards = small.photographs(tmp_path_factory.getbasetemp())
    return [f"data.{name}={shards / name}" for name in ("train", "val")]


def parse(words: list[str]) -> dict:
    """Parse a command line with the application itself, without running it."""
    name, *rest = words
    assert name in COMMANDS
    return COMMANDS[name].make_context(name, list(rest)).params


@pytest.mark.parametrize(("document", "line"), TYPED, ids=lambda value: value[:60])
def test_every_line_can_be_typed(document, line, sets):
    program, *words = shlex.split(line)
    if program == "curl":
        assert line in PRESETS["coco_panoptic_r50"]
        return
    if program.startswith(".venv/bin/"):
        assert (Path(sys.prefix) / program.removeprefix(".venv/")).exists()
        return
    assert program == "./launch.sh"
    if words[0] in LAUNCHER_COMMANDS:
        options = {"--dev"} if words[0] == "setup" else {"--all"}
        assert set(words[1:]) <= options
        return
    parameters = parse(words)
    if words[0] == "train":
        kept = [word for word in parameters["overrides"] if not word.startswith("data.")]
        anywhere = ["scaling.gpu=false", "model.weights=none"]
        config = configs.load(parameters["preset"], [*kept, *sets, *anywhere])
        if document not in PRESETS:  # test_config checks all presets
            check(config)


def test_the_first_two_commands_are_demo_and_test():
    demo, test, *_ = fenced(DOCUMENTS["README.md"])
    assert (demo, test) == ("./launch.sh demo", "./launch.sh test")


@pytest.mark.parametrize(
    "row",
    re.findall(
        r"^\| (?!event |---).*$", DOCUMENTS["docs/recovery.md"].partition("## The time")[0], re.M
    ),
    ids=lambda row: row[2:50],
)
def test_every_row_of_the_recovery_page_has_its_test(row):
    file, name = re.search(r"\| `([\w/]+\.py)::(\w+)` \|$", row).groups()
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_faults_of_the_recovery_page_are_a_schedule(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENTS["docs/recovery.md"], re.DOTALL)
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    assert Faults.of(path).options[1] == str(path)


def test_the_table_lists_every_command():
    table = DOCUMENTS["README.md"].partition("## Commands")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    usages = [usage for cell in cells for usage in re.findall(r"`(.+?)`", cell)]
    assert {usage.split()[0] for usage in usages} == LAUNCHER_COMMANDS | set(COMMANDS)
    for usage in usages:
        words = [word.strip("[]…") for word in usage.replace("key=value …", "").split()]
        if words[0] not in LAUNCHER_COMMANDS:
            parse([word for word in words if word])


def test_the_site_file_of_the_page_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENTS["docs/cluster.md"], re.DOTALL)
    path = tmp_path / "site.yaml"
    path.write_text(text)
    assert site.load(path).slurm.partition == "gpu"


def test_every_preset_says_how_it_is_started():
    for name in PRESETS:
        lines = [line for preset, line in headers() if preset == name]
        assert any(f"./launch.sh train {name} " in line for line in lines), name


def test_weights_are_fetched_to_where_the_presets_look():
    for name, text in PRESETS.items():
        weights = configs.load(name, ["data.train=a", "data.val=b"]).model.weights
        if weights == "none":
            continue
        (command,) = FETCH.finditer(text)
        assert command["target"] == str(Path(weights).relative_to(Path.cwd())), name
        is_file = command["source"].endswith(f"/{Path(weights).name}")
        assert is_file == command["command"].startswith("curl"), name


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_it_points_at_exist(document):
    text, folder = DOCUMENTS[document], (ROOT / document).parent
    links = [link for link in re.findall(r"\]\((.+?)\)", text) if "://" not in link]
    code = re.findall(r"`([\w./-]+(?:\.md|\.py|\.txt|\.sh|\.toml|/))`", text)
    assert links + code
    in_runs = (
        "runs/",
        "checkpoints/",
        "evaluations/",
        "pictures/",
        "stacks/",
        "wandb/",
        "diagnoses/",
    )
    in_wandb = ("train/", "layers/", "lr/", "speed/", "hosts/", "trainer/", "val/")
    raw_coco = ("train2017/", "val2017/", "annotations/")
    for_servers = ("instances/", "masks/")
    for link in links:
        file, _, anchor = link.partition("#")
        target = folder / file if file else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
    for path in code:
        if not path.startswith((*in_runs, *in_wandb, *raw_coco, *for_servers)):
            assert (ROOT / path).exists() or (ROOT / "pipeline" / path).exists(), path


def test_the_page_of_benchmarks_is_the_report_of_the_kept_results():
    text, _ = report.render(ROOT / "benchmarks")
    assert (ROOT / "BENCHMARKS.md").read_text() == f"{text}\n"


def test_settings_that_the_documents_name_exist():
    known = {key for key, _ in keys(configs.Config)}
    text = re.sub(r"```python.*?```", "", "\n".join(DOCUMENTS.values()), flags=re.DOTALL)
    packages = "data|batch|model|criterion|optimizer|schedule|trainer|zero|scaling|failure|tracking"
    named = re.findall(rf"`((?:{packages})\.[\w.]*\w)", text)
    assert len(named) > 5
    for key in named:
        assert key in known, key


def test_no_document_outside_the_repository_is_cited():
    outside = re.compile(r"\b(mask2former\.md|systems\.md|anchors(-2)?\.md|DESIGN\b)|\.\./shared")
    for folder in ("model", "shards", "pipeline", "jobs", "tests", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".yaml"} and path != Path(__file__):
                assert not outside.search(path.read_text()), path
