"""What every command prints when it warns or fails."""

import subprocess
import sys

PROGRAM = """
import sys, warnings
import typer
from jobs import console
from shards.errors import DataError

app = typer.Typer()

@app.command()
def command() -> None:
    warnings.warn("the cache is too small")
    raise DataError("the header is damaged", where="000000.tar", fix="download it again")

sys.argv = ["launch.sh"]
sys.exit(console.run(app))
"""


def test_a_warning_and_an_error_are_one_line_each():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        "warning: the cache is too small",
        "error: 000000.tar: the header is damaged; download it again",
    ]
    assert (done.returncode, done.stdout) == (3, "")
