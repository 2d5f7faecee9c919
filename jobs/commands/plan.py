"""The command that says what a run would take."""

from typing import Annotated

import typer

from jobs.commands.options import Json
from jobs.commands.runs import PRESET
from jobs.console import report


def plan(
    preset: Annotated[str, typer.Argument(help=PRESET)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the memory, the speed, the time, and the space that a run would take here.

    A few steps are taken and measured, with random images if data.train and data.val are not set.
    Without the GPUs that the preset wants, the memory is an estimate, and no time is given.

    \\b
    Example:
      ./launch.sh plan coco_panoptic_r50 batch.micro=4
    """

    def job() -> dict[str, object]:
        from jobs.plan import plan as run

        return run(preset, overrides or [])

    report(job, as_json)
