"""No parser fails on a damaged file with anything except an error for the user."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SEED, COUNT = 0, 12


@pytest.mark.slow
def test_every_parser_refuses_mutated_files_in_bounded_memory_and_time(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", tmp_path, str(SEED), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    failures = [line for line in lines if "error" in line]
    assert not failures, json.dumps(failures[:5], indent=1)
    assert len(lines) > 15, "every parser reports the number of inputs that it refused"
