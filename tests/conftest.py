"""`slow` tests run with --all, `gpu` tests with a GPU, and no test is skipped quietly.

What mounts a small disk is skipped where that is not allowed, what a browser shows where there is
no chromium.
"""

import os

import hypothesis
import pytest
import torch

# The only reasons for which a test may be skipped; any other skip fails the run.
ALLOWED_SKIPS = ("gpu", "mount", "chromium")

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
_unexpected_skips: list[str] = []


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        slow = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="gpu"))


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


hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("untimed")
