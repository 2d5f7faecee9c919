"""Which tests run: `slow` ones with --all, `gpu` ones with a GPU.

A test may be skipped only for a reason in ALLOWED_SKIPS: it needs a GPU, the permission to mount a
small disk, chromium, strace, or the permission to make network namespaces (with SLURM installed).
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from jobs.processes import PR_SET_CHILD_SUBREAPER

# Any other reason fails the whole run.
ALLOWED_SKIPS = ("gpu", "mount", "chromium", "strace", "namespaces")

# A shell that starts the tests in the background lets them ignore Ctrl-C, and nohup the end of the
# terminal. So would the commands that they start, which are to handle both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
# The processes of `./launch.sh test` share the cores.
processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
_unexpected_skips: list[str] = []


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="gpu"))


def pytest_runtest_teardown():
    # W&B keeps a process, and in it the address of its server and the runs that are open. A later
    # test would use that server, and so would the commands that it starts, which find the process
    # by this variable.
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)
    # A command that ran in this process has made it adopt orphans. It does not wait for those of
    # other programs, so that Ray would take an ended job, which is a zombie here, to be running.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def pytest_runtest_logreport(report):
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1].removeprefix("Skipped: ")
        if reason not in ALLOWED_SKIPS:
            _unexpected_skips.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session, exitstatus):
    if _unexpected_skips and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for line in _unexpected_skips:
        terminalreporter.write_line(f"skipped without an allowed reason: {line}", red=True)


hypothesis.settings.register_profile(
    "untimed", deadline=None
)  # a busy machine must not fail a test
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The CC BY sample of COCO as shard sets. Tests must not change it."""
    from tests.jobs import small  # imports all commands, which many tests do not need

    return small.photographs(tmp_path_factory.getbasetemp())
