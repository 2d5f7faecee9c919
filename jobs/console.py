"""What every command shares: how it ends, how an error looks, and `--json`."""

import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from jobs.interrupts import Ended, Interrupted, handled, requests
from shards.errors import M2FError
from shards.text import printable


def run(app: typer.Typer) -> int:
    """Run the command that `sys.argv` names and return its exit code."""
    warnings.showwarning = _print_warning
    requests.reset()
    try:
        with handled(requests.end):
            app(standalone_mode=False, prog_name="./launch.sh")
    except M2FError as error:
        return _complain(str(error), error.exit_code)
    except typer.Exit as stop:
        return stop.exit_code
    except Ended:
        error = requests.error()
        return _complain(str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _complain("interrupted", Interrupted.exit_code)
    except typer.TyperException as error:
        # Its subclasses have `show`, which prints the usage line, but typer does not export them.
        error.show()  # pyright: ignore[reportAttributeAccessIssue] typer exports the base only
        return 2
    return 0


def report(job: Callable[[], Any], as_json: bool) -> None:
    """Run a job and, with `--json`, print its result as JSON.

    With `as_json`, stdout holds one JSON document and nothing more: the text that the job prints
    goes to stderr, and a job that fails leaves `{"error": {"what", "where", "fix"}}`.

    Args:
        job: Returns JSON types.
        as_json: Whether `--json` was given.

    Raises:
        M2FError: The job failed.
    """
    if not as_json:
        job()
        return
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result = job()
    except M2FError as error:
        _print_json({"error": dataclasses.asdict(error.problem)})
        raise
    _print_json(result)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning like an error, without the source line that Python adds."""
    print(f"warning: {_one_line(str(message))}", file=sys.stderr)


def _complain(text: str, code: int) -> int:
    print(f"error: {_one_line(text)}", file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
