"""Commands that show runs."""

from typing import Annotated

import typer

from jobs.commands.options import Json
from jobs.console import report


def watch(
    run: Annotated[str, typer.Argument(help="A name under runs/, a path, or a URL.")],
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Show a run live in the terminal: losses, scores, speed, time left, restarts, and events.

    It reads the run's own files, so it works without W&B, on any machine that reaches them, and
    for runs that have ended. It ends with the run, or by Ctrl-C, which does not stop the run. If
    the output is not a terminal, it prints one frame of plain text.
    """
    from jobs.watch import watch as job

    job(run, once)


def runs(
    location: Annotated[
        str, typer.Argument(help="The folder or URL of the runs, as in the setting `runs`.")
    ] = "runs",
    as_json: Json = False,
) -> None:
    """List the runs at a location: state, progress, best score, and the share of useful time."""
    from jobs.watch import runs as job

    report(lambda: job(location), as_json)
