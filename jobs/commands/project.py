"""Commands about the project itself."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.options import Json
from jobs.console import report


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the data, the shards, the run, and the pictures.")
    ] = Path("demo"),
) -> None:
    """Run every step on a small scale here: data, shards, training, scores, pictures."""
    from jobs.demo.demo import demo as job

    job(out)


def settings(
    preset: Annotated[
        str | None,
        typer.Argument(help="Print this preset's values; * marks those that are not the default."),
    ] = None,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print a JSON Schema of presets instead.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/settings.md instead.")
    ] = False,
) -> None:
    """List every setting: its key, value, unit, allowed values, and effect.

    \b
    Example:
      ./launch.sh settings coco_panoptic_r50
    """
    from jobs.settings import settings as job

    job(preset, json_schema, markdown)


def bench(
    name: Annotated[
        str,
        typer.Argument(help="A benchmark, such as step; or report, to render benchmarks/*.json."),
    ],
    as_json: Json = False,
) -> None:
    """Run one benchmark, and compare with another implementation if one exists.

    \b
    Save a result, and render the tables of BENCHMARKS.md from all saved results:
      ./launch.sh bench step --json > benchmarks/step-MACHINE.json
      ./launch.sh bench report
    """
    from jobs.bench import bench as job

    report(lambda: job(name), as_json)
