"""Run a script in a new process, because Triton reads TRITON_INTERPRET as it defines a kernel."""

import os
import subprocess
import sys
from pathlib import Path


def run(script: str, **environment: str) -> None:
    """Run a Python script from the root of the project; it must end without an error."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
