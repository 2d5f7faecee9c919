"""Commands that look after what was submitted to a cluster, and after local runs, by name."""

from typing import Annotated, Any

import typer

from jobs.commands.options import Json
from jobs.console import report

Name = Annotated[str, typer.Argument(help="Name of a run that was submitted or is here, or path.")]


def status(
    run: Annotated[
        str | None, typer.Argument(help="Only this run. Default: all that were submitted.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the state of submitted commands, or of a run on this machine."""
    from jobs.cluster import control

    def job() -> list[dict[str, Any]]:
        return control.status(run)

    report(job, as_json)


def logs(
    run: Name,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Follow until the end; Ctrl-C stops following.")
    ] = False,
) -> None:
    """Print the output of a submitted command, or the events of a run on this machine.

    With -f, the exit code is that of the submitted command.
    """
    from jobs.cluster import control

    control.logs(run, follow)


def stop(run: Name) -> None:
    """Ask a run to write a checkpoint and end. The same command as before resumes it."""
    from jobs.cluster import control

    control.stop(run)
