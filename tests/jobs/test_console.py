"""What every command prints when it warns or fails."""

import os
import pty
import signal
import subprocess
import sys

import pytest

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


WARN = 'warnings.warn("the cache is too small")'
SEND = """
    import os, time
    try:
        os.kill(os.getpid(), {})
        time.sleep({})
    finally:
        print("cleaned up")
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
def test_a_signal_ends_a_command_with_its_clean_up_and_one_line(number, code):
    program = PROGRAM.replace(
        'warnings.warn("the cache is too small")', SEND.format(int(number), 60)
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines() == [f"error: stopped by {number.name}"]
    assert (done.returncode, done.stdout) == (code, "cleaned up\n")


def test_a_signal_that_is_ignored_at_the_start_stays_ignored():
    """As SIGHUP is under `nohup`."""
    sent = SEND.format(int(signal.SIGHUP), 0)
    program = PROGRAM.replace(WARN, sent)
    program = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN){program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "cleaned up\n")


HANGUP = """
    import sys, time
    sys.stdout.write("up")
    sys.stdout.flush()
    try:
        time.sleep(60)
    finally:
        print("to nobody", flush=True)
"""


def test_a_command_survives_the_end_of_its_terminal():
    """Printing to a terminal that is gone fails, and would hide the exit code."""
    process, terminal = pty.fork()
    if process == 0:
        program = PROGRAM.replace(WARN, HANGUP)
        os.execv(sys.executable, [sys.executable, "-c", program])
    assert os.read(terminal, 2) == b"up"
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 75
