"""launch.sh, without installing or downloading anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch.sh"
TOOLS = ("bash", "dirname", "cat", "cksum", "tr", "awk", "df", "flock", "mkdir")


def launch(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run launch.sh with additional environment variables."""
    return subprocess.run(
        [shutil.which("bash"), str(LAUNCH), *words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def venv(tmp_path):
    """A folder of links to this Python's environment, with the stamp of a complete one."""
    folder = tmp_path / "venv"
    folder.mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name not in (".complete", "requirements.txt"):
            (folder / path.name).symlink_to(path)
    sources = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    stamp = subprocess.run(["cksum"], input=b"".join(sources), capture_output=True, check=True)
    (folder / ".complete").write_text(stamp.stdout.decode().replace(" ", ""))
    return folder


@pytest.fixture
def bare(tmp_path):
    """A PATH with common tools and without Python."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    return str(folder)


def test_the_script_parses_and_is_executable():
    assert subprocess.run(["bash", "-n", str(LAUNCH)], capture_output=True).stderr == b""
    assert os.access(LAUNCH, os.X_OK)


def test_setup_of_a_complete_environment_does_nothing(venv):
    before = (venv / ".complete").stat().st_mtime_ns
    done = launch("setup", M2F_VENV=str(venv))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"setup: ready ({venv})\n"
    assert (venv / ".complete").stat().st_mtime_ns == before
    assert not (venv / "requirements.txt").exists()


def test_commands_reach_the_application_from_any_folder(venv, tmp_path):
    done = launch("--help", cwd=tmp_path, M2F_VENV=str(venv))
    assert done.returncode == 0, done.stderr
    for command in ("demo", "build", "train", "evaluate", "predict", "bench", "setup", "test"):
        assert command in done.stdout
    wrong = launch("evaluate", "nothing", cwd=tmp_path, M2F_VENV=str(venv))
    assert wrong.returncode == 2
    assert wrong.stderr == "error: no run 'nothing'; start one with ./launch.sh train\n"


def test_test_passes_its_arguments_to_pytest(venv, tmp_path):
    done = launch("test", "--collect-only", "-q", str(Path(__file__)), M2F_VENV=str(venv))
    assert done.returncode == 0, done.stderr
    assert "test_launch.py::test_the_script_parses_and_is_executable" in done.stdout


@pytest.mark.parametrize("words", [["setup"], ["train", "tiny"]])
def test_a_missing_python_is_reported_in_one_line(words, bare, tmp_path):
    done = launch(*words, PATH=bare, M2F_PYTHON="/nonexistent", M2F_VENV=str(tmp_path / "none"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("launch.sh: no python >= 3.11 found")
    assert "M2F_PYTHON=" in line
    assert not (tmp_path / "none").exists()


def test_an_old_python_is_not_used(bare, tmp_path):
    """The stub exits with 1, as the version check of an old Python does."""
    old = tmp_path / "bare" / "python3"
    old.write_text(f"#!{shutil.which('bash')}\nexit 1\n")
    old.chmod(0o755)
    done = launch("setup", PATH=bare, M2F_VENV=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "no python >= 3.11 found" in done.stderr


def test_another_requirement_makes_the_environment_incomplete(venv, bare):
    """The stamp is a checksum of pyproject.toml and constraints.txt."""
    (venv / ".complete").write_text("0\n")
    done = launch("--help", PATH=bare, M2F_PYTHON="/nonexistent", M2F_VENV=str(venv))
    assert done.returncode == 2
    assert "no python" in done.stderr
