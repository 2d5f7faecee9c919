"""The command that shows that a run survives kills."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.commands.options import Json
from jobs.commands.runs import PRESET
from jobs.console import report


def drill(
    preset: Annotated[str, typer.Argument(help=PRESET)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change in both runs."),
    ] = None,
    kills: Annotated[
        int, typer.Option(min=1, help="Number of SIGKILLs of workers and of the command.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Key of the moments of the kills.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the data and the runs.")] = Path("drill"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the kills and the commands; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a short run undisturbed and its twin with random kills, and compare the two.

    The verdict is good, and the exit code 0, if every loss and the final weights are equal.
    Without data.train, the runs learn painted shapes.

    \b
    Example:
      ./launch.sh drill tiny --kills 5
    """
    results: list[dict[str, Any]] = []

    def job() -> dict[str, Any]:
        from jobs.drill import drill as run

        results.append(run(preset, overrides or [], kills, seed, out, dry_run=dry_run))
        return results[0]

    report(job, as_json)
    if not dry_run and not results[0]["good"]:
        raise typer.Exit(1)
