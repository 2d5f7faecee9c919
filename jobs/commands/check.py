"""The command that checks everything before training."""

from typing import Annotated

import typer

from jobs.commands.options import Json, On, Site
from jobs.console import report
from shards.errors import UsageError


def check(
    preset: Annotated[str, typer.Argument(help="A preset, or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")
    ] = None,
    on: On = "local",
    site: Site = None,
    as_json: Json = False,
) -> None:
    """Check the config, the data, and every host that would train, without training.

    All findings are printed at once, with the host, the cause, and the fix. The exit code is 2 if
    there are errors, 3 if all of them concern the data, and 0 if there are only warnings.

    \b
    Example:
      ./launch.sh check tiny data.train=SHARDS/train data.val=SHARDS/val --on 10.0.0.1:6379
    """
    from jobs.cluster import dispatch
    from jobs.cluster.findings import refuse
    from jobs.cluster.ready import Readiness, ready

    found: list[Readiness] = []

    def job() -> dict[str, object]:
        target, facts = dispatch.resolve(on, site, dry_run=False)
        if target.is_submitted:
            fix = "give --on HOST:PORT on a node of the cluster; train checks its hosts in the job"
            raise UsageError("the command runs on a cluster itself", where=f"--on {on}", fix=fix)
        changes = dispatch.with_runs(preset, overrides or [], facts)
        found.append(ready(preset, changes, target))
        return found[0].to_json()

    report(job, as_json)
    refuse(found[0].findings)
