"""launch.sh, without installing or downloading anything."""

import json
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
        if path.name not in (".complete", ".complete-dev", "requirements.txt", "setup.log"):
            (folder / path.name).symlink_to(path)
    sources = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    stamp = subprocess.run(["cksum"], input=b"".join(sources), capture_output=True, check=True)
    for name in (".complete", ".complete-dev"):
        (folder / name).write_text(stamp.stdout.decode().replace(" ", ""))
    return folder


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """An empty environment whose `python -m pip` writes a log and ends as PIP says."""
    folder, tools = tmp_path / "stub", tmp_path / "tools"
    (folder / "bin").mkdir(parents=True)
    tools.mkdir()
    programs = {
        folder / "bin" / "python": f'''case "$1 $2" in
          "-m pip") echo "$@" >>"{tmp_path}/pip.log"; echo "Installing collected packages: a, b"
            eval "$PIP" ;;
          "-P -c") ;;
          *) exec {sys.executable} "$@" ;;
        esac''',
        tools / "nvidia-smi": "",  # no compiler is needed then
    }
    for path, text in programs.items():
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    for name, value in {
        "M2F_VENV": str(folder),
        "M2F_PYTHON": sys.executable,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PIP": "",
    }.items():
        monkeypatch.setenv(name, value)
    return folder


def stamps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".complete*"))


def pip_calls(folder: Path) -> int:
    return len((folder.parent / "pip.log").read_text().splitlines())


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


def test_setup_installs_the_test_tools_only_if_they_are_asked_for(stub):
    assert launch("setup").stdout == f"setup: ready ({stub})\n"
    requirements = (stub / "requirements.txt").read_text()
    assert "torch>=" in requirements
    assert "pytest" not in requirements
    assert stamps(stub) == [".complete"]
    assert launch("setup").returncode == 0
    assert pip_calls(stub) == 1
    assert launch("setup", "--dev").returncode == 0
    requirements = (stub / "requirements.txt").read_text()
    assert "torch>=" in requirements
    assert "pytest>=" in requirements
    assert stamps(stub) == [".complete", ".complete-dev"]
    for words in (["setup"], ["setup", "--dev"]):
        assert launch(*words).returncode == 0
    assert pip_calls(stub) == 2


def test_test_installs_the_test_tools_that_are_missing(stub):
    assert launch("setup").returncode == 0
    done = launch("test", "--version")
    assert done.returncode == 0, done.stderr
    assert stamps(stub) == [".complete", ".complete-dev"]


def test_a_failed_install_leaves_no_complete_environment(stub):
    assert launch("setup").returncode == 0
    failed = launch("setup", "--dev", PIP="echo no such package >&2; exit 1")
    assert failed.returncode == 2
    assert "no such package\nlaunch.sh: pip could not install the packages" in failed.stderr
    assert stamps(stub) == []
    assert launch("setup").returncode == 0
    assert stamps(stub) == [".complete"]


def test_a_command_whose_environment_is_made_first_prints_only_its_own_output(stub):
    done = launch("settings", "--json-schema")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    steps = [line.split()[2:4] for line in done.stderr.splitlines() if " step " in line]
    assert steps == [["step", number] for number in "123"]


@pytest.mark.slow
def test_a_long_install_reports_its_progress(stub):
    done = launch("setup", PIP="sleep 6")
    assert "installing: 0 of 2 packages" in done.stderr


def test_an_unknown_option_of_setup_is_refused(stub):
    done = launch("setup", "--devel")
    assert done.returncode == 2
    assert "launch.sh: unknown option --devel; usage: ./launch.sh setup [--dev]" in done.stderr
    assert "setup [--dev]" in launch("setup", "--help").stdout
    assert stamps(stub) == []
