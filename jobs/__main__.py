"""`./launch.sh COMMAND`: the list of the commands.

A command imports its job when it is called, so that `--help` loads neither torch nor Ray.
"""

import sys
from typing import Annotated

import typer

from jobs import __version__
from jobs.commands import cluster, data, project, runs, window
from jobs.commands.build import build
from jobs.commands.check import check
from jobs.commands.drill import drill
from jobs.commands.evaluate import evaluate
from jobs.commands.plan import plan
from jobs.commands.tryout import tryout
from jobs.console import run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 failed, and the input is not to blame; 2 wrong command line, "
    "path, or setting; 3 wrong or damaged data; 75 stopped by a scheduler; 130 by Ctrl-C. "
    "An error is one line on stderr.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Train Mask2Former, from raw data to scores and pictures.

    launch.sh itself runs two more commands: setup (create the environment) and test [--all] (run
    the tests).
    """


for command in (
    *(project.demo, build, data.verify, data.inspect, data.index, check, plan, runs.train),
    *(window.watch, window.runs),
    *(cluster.status, cluster.logs, cluster.stop, project.settings, evaluate, runs.predict),
    *(runs.replay, runs.export, drill, project.bench),
):
    app.command()(command)


app.command("try")(tryout)


def main() -> int:
    """Run the command in `sys.argv` and return its exit code."""
    return run(app)


if __name__ == "__main__":
    sys.exit(main())
