"""Commands as a user types them: help, exit codes, and one clear line for a mistake."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from pipeline.run import checkpoint
from pipeline.run.folder import CHECKPOINTS
from shards.build.build import build
from tests.jobs import small
from tests.shards.raw import SAMPLE, sky, write

OPTIONS = {
    "demo": ["--out"],
    "build": ["--root", "--out", "--splits", "--limit", "--jobs", "--tasks", "--on", "--instances"],
    "verify": ["out", "--sample", "--repair", "--jobs"],
    "inspect": ["sets", "key", "--out", "--html", "--jobs"],
    "plan": ["preset", "KEY=VALUE", "--json"],
    "train": ["preset", "KEY=VALUE", "--no-check"],
    "check": ["preset", "KEY=VALUE", "--on", "--json"],
    "evaluate": ["run", "--checkpoint", "--data", "--images"],
    "predict": ["run", "images", "--out", "--checkpoint", "--threshold"],
    "export": ["run", "--to", "--out", "--checkpoint"],
    "bench": ["name", "--json"],
}


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    """A folder with an untrained run of the photographs."""
    folder = tmp_path_factory.mktemp("cli")
    small.untrained(folder, photographs)
    return folder


@pytest.fixture(scope="module")
def skies(tmp_path_factory):
    """Shard sets of another label space."""
    folder = tmp_path_factory.mktemp("skies")
    raw = write(folder / "raw", [sky("a.png")])
    build("coco", raw, folder / "shards", jobs=1, report=lambda _: None)
    return folder / "shards"


def fails(folder, command, code, pattern):
    """The command ends with `code` and one line on stderr that matches; nothing on it but that."""
    outcome = small.call(folder, *map(str, command))
    assert outcome.code == code, outcome
    assert re.search(pattern, small.complaint(outcome)), outcome.err


def test_help_lists_every_command(tmp_path):
    outcome = small.call(tmp_path, "--help")
    assert outcome.code == 0
    for command in (*OPTIONS, "setup", "test"):
        assert re.search(rf"\b{command}\b", outcome.out)


@pytest.mark.parametrize("command", OPTIONS)
def test_help_of_a_command_names_its_options(command, tmp_path):
    outcome = small.call(tmp_path, command, "--help")
    assert outcome.code == 0
    for option in OPTIONS[command]:
        assert option in outcome.out


@pytest.mark.parametrize("command", [[], ["train"]])
def test_h_is_short_for_help(command, tmp_path):
    outcome = small.call(tmp_path, *command, "-h")
    assert outcome.code == 0
    assert outcome.out == small.call(tmp_path, *command, "--help").out


def test_help_of_train_names_presets_settings_and_an_example(tmp_path):
    text = small.call(tmp_path, "train", "--help").out
    for part in ("coco_panoptic_r50", "batch.size=8", "./launch.sh settings", "./launch.sh train"):
        assert part in text


def test_help_explains_the_exit_codes(tmp_path):
    text = " ".join(small.call(tmp_path, "--help").out.split())
    assert "Exit codes: 0 done; 1 failed" in text
    assert "2 wrong command line, path, or setting; 3 wrong or damaged data" in text


def test_the_version_is_that_of_pyproject(tmp_path):
    project = tomllib.loads((small.ROOT / "pyproject.toml").read_text())["project"]
    outcome = small.call(tmp_path, "--version")
    assert (outcome.code, outcome.out) == (0, f"{project['version']}\n")


def test_help_comes_without_the_heavy_imports():
    heavy = "{'torch', 'ray', 'transformers', 'cv2', 'pyarrow'}"
    program = (
        "import sys; sys.argv = ['jobs', '--help']; from jobs.__main__ import main; "
        f"assert main() == 0; assert not {heavy} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=small.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", [["trian", "tiny"], ["evaluate"], ["build", "coco", "--rot", "x"], ["bench"]]
)
def test_a_wrong_command_line_exits_2_without_traceback(command, tmp_path):
    outcome = small.call(tmp_path, *command)
    assert outcome.code == 2
    assert "Usage: " in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("command", "code", "pattern"),
    [
        (
            ["train", "tiny", "data.train=nowhere/train", "data.val=nowhere/val"],
            2,
            r"data\.train=.*nowhere/train: not a shard set .*launch\.sh build",
        ),
        (
            ["build", "coco", "--root", "raw", "--out", "out"],
            3,
            r"annotations: the folder has neither panoptic_val2017\.json nor .*; add one",
        ),
    ],
)
def test_a_process_ends_with_the_code_and_one_line(command, code, pattern, tmp_path):
    raw = write(tmp_path / "raw", [sky("a.png")])
    shutil.rmtree(raw / "annotations")
    outcome = small.finish(small.start(tmp_path, *command))
    assert outcome.code == code
    assert re.search(pattern, small.complaint(outcome))


def test_train_refuses_before_anything_is_made(tmp_path, photographs):
    sets = [f"data.{name}={photographs / name}" for name in ("train", "val")]
    fails(tmp_path, ["train", "tini", *sets], 2, r"no preset 'tini'; did you mean tiny\?")
    fails(tmp_path, ["train", "tiny", *sets, "trainer.stepz=1"], 2, r"did you mean trainer\.steps")
    fails(tmp_path, ["train", "tiny", *sets, "data.crop=65"], 2, r"data\.crop=65")
    fails(tmp_path, ["train", "tiny", sets[0]], 2, r"data\.val is not set; add data\.val=")
    assert not (tmp_path / "runs").exists()


def test_runs_that_cannot_be_written(tmp_path, photographs):
    (tmp_path / "runs").write_text("a file")
    fails(tmp_path, small.words(photographs), 2, r"runs/small: .*(Not a directory|File exists)")


def test_a_taken_name(tmp_path, photographs):
    (tmp_path / "runs/small").mkdir(parents=True)
    (tmp_path / "runs/small/thesis.txt").write_text("mine")
    fails(tmp_path, small.words(photographs), 2, r"small: .* is not a run; .*name=NAME")
    assert (tmp_path / "runs/small/thesis.txt").read_text() == "mine"


def test_a_run_of_other_settings_lists_them(work, photographs):
    changes = ["seed=7", "batch.size=16", "trainer.steps=99", "model.queries=13"]
    pattern = r"batch\.size: 8 -> 16; model\.queries: 12 -> 13; seed: 42 -> 7\).*name=NAME"
    fails(work, small.words(photographs, *changes), 2, pattern)


def test_a_run_of_other_data_says_so(tmp_path, photographs):
    run = small.untrained(tmp_path, photographs)
    (run / "environment.json").write_text(json.dumps({"data": {"train": "0", "val": "0"}}))
    fails(tmp_path, small.words(photographs), 2, r"shards of data\.train; the shards of data\.val")


def test_stage_3_is_for_one_number_of_workers(tmp_path, photographs):
    """DeepSpeed's own checkpoints are for one number of workers; those of other stages are not."""
    small.untrained(tmp_path, photographs, "zero.stage=3")
    changes = ["zero.stage=3", "scaling.workers=1"]
    fails(tmp_path, small.words(photographs, *changes), 2, r"scaling\.workers: 2 -> 1")


@pytest.mark.parametrize(
    ("options", "code", "pattern"),
    [
        (["--root", "nowhere", "--out", "out"], 2, r"--root: nowhere is not a folder"),
        (["--root", SAMPLE, "--out", "file/out"], 2, r"file/out"),
        (["--root", SAMPLE, "--out", "out", "--splits", "test"], 2, r"test"),
        (["--root", SAMPLE, "--out", "out", "--tasks", "boxes"], 2, r"unknown task 'boxes'"),
    ],
)
def test_build_refuses(options, code, pattern, tmp_path):
    (tmp_path / "file").write_text("")
    fails(tmp_path, ["build", "coco", *options], code, pattern)
    fails(tmp_path, ["build", "cocoa", "--root", SAMPLE, "--out", "out"], 2, r"'cocoa'.*coco")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_unknown_runs_and_checkpoints(command, work):
    rest = [SAMPLE / "val2017", "--out", "seen"] if command == "predict" else []
    known = r"no run 'smal'; did you mean small\?"
    fails(work, [command, "smal", *rest], 2, known)
    fails(work, [command, "small", *rest, "--checkpoint", "7"], 2, r"--checkpoint 7: .*\[0\]")
    fails(work, [command, "small", *rest, "--checkpoint", "lst"], 2, r"lst: .*; give best, last,")


def test_no_run_and_no_checkpoint_yet(tmp_path, photographs):
    fails(tmp_path, ["evaluate", "small"], 2, r"no run 'small'; start one with")
    run = small.untrained(tmp_path, photographs)
    (run / CHECKPOINTS / checkpoint.name_of(0, 1) / checkpoint.COMMITTED).unlink()
    fails(tmp_path, ["evaluate", "small"], 2, r"small: .* no checkpoint yet; train it first")


def test_evaluating_on_other_classes(work, skies):
    pattern = r"skies.*shards/val: has the label space coco_panoptic \(3 classes\), .*\(133\)"
    fails(work, ["evaluate", "small", "--data", skies / "val"], 2, pattern)
    fails(work, ["evaluate", "small", "--data", skies], 2, r"not a shard set")


def test_predict_refuses(work, tmp_path):
    out = ["--out", tmp_path / "seen"]
    fails(work, ["predict", "small", "no.jpg", *out], 2, r"no\.jpg: does not exist; give images")
    (tmp_path / "empty").mkdir()
    fails(
        work,
        ["predict", "small", tmp_path / "empty", *out],
        2,
        r"empty: holds no image .*; give another",
    )
    text = tmp_path / "text.jpg"
    for content, reason in {"no image": "the image has no readable header", "": "is empty"}.items():
        text.write_text(content)
        pattern = rf"summary\.json: 1 of the inputs \(text\.jpg: .*{reason}.*\) were left out"
        fails(work, ["predict", "small", text, *out], 3, pattern)
    photo = SAMPLE / "val2017/000000000285.jpg"
    fails(work, ["predict", "small", photo, "--out", text / "seen"], 2, r"--out .*text\.jpg/seen")


def test_unknown_benchmarks(tmp_path):
    fails(tmp_path, ["bench", "overfti"], 2, r"no benchmark 'overfti'; known: .*overfit")
    fails(tmp_path, ["bench", "report"], 2, r"benchmarks: no results .*; keep one: .* --json > ")


def test_build_and_verify_print_json(tmp_path):
    built = small.call(tmp_path, "build", "coco", "--root", str(SAMPLE), "--out", "out", "--json")
    summaries = json.loads(built.out)
    assert {name: summary["samples"] for name, summary in summaries.items()} == {
        "train": 10,
        "val": 5,
    }
    assert built.err
    checked = json.loads(small.call(tmp_path, "verify", "out/val", "--json").out)
    assert checked["sound"]
    tar = tmp_path / "out/val/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    damaged = small.call(tmp_path, "verify", "out/val", "--json")
    assert damaged.code == 3
    assert set(json.loads(damaged.out)["error"]) == {"what", "where", "fix"}


def test_the_demo_leaves_a_folder_of_the_user(tmp_path):
    photo = tmp_path / "demo/raw/photo.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_text("mine")
    fails(tmp_path, ["demo"], 2, r"--out .*demo: the folder holds what demo did not write; name a")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [photo]
