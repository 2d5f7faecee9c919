"""Arguments and options that several commands share."""

from typing import Annotated

import typer

Run = Annotated[str, typer.Argument(help="A name under runs/, or a path.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="best, last, or a step. Default: best if a score is known, otherwise last."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per CPU.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and text on stderr.")
]
