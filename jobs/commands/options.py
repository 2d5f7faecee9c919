"""Arguments, options, and the opening of runs that several commands share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[str, typer.Argument(help="A name under runs/, a path, or a URL.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="best, last, or a step. Default: best if a score is known, otherwise last."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per CPU.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and text on stderr.")
]
Site = Annotated[
    Path | None,
    typer.Option(
        help="YAML of facts about a cluster, see docs/cluster.md. Default: $M2F_SITE, "
        "./site.yaml, or ~/.config/mask2former/site.yaml."
    ),
]
On = Annotated[
    str,
    typer.Option(
        help="Where the command runs. local: on this machine. HOST:PORT: on the Ray cluster of "
        "that address, of which this machine is a node, and whose nodes share the paths that are "
        "given (URLs need not be shared); build also takes ray://HOST:PORT. auto: on the cluster "
        "of RAY_ADDRESS if that is set, otherwise local. http://HOST:8265, slurm, kuberay: in a "
        "job that is submitted there."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what --on would submit, and submit nothing.")
]
DryPlan = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the plan of the run, or what --on would submit; train and write nothing.",
    ),
]


@contextlib.contextmanager
def opened_run(
    run: str, checkpoint: str | None = None, *, needs_weights: bool = True
) -> Iterator[str]:
    """Yield the folder of a run; see `jobs.stored.opened`.

    A run that does not exist is reported before torch is imported, which takes seconds.
    """
    from jobs import config

    config.check_run(run)
    from jobs.stored import opened

    with opened(run, checkpoint, needs_weights=needs_weights) as folder:
        yield str(folder)
