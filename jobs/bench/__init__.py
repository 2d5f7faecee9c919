"""`bench NAME`: what we claim, measured; rows for people and for machines."""

import json
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shards.errors import UsageError

NAMES = ("overfit",)
COLUMNS = ("name", "unit", "ours", "peer", "peer_name", "ratio", "better", "target")


def bench(name: str, out: Path | None = None) -> list[dict]:
    """Run one benchmark; print its rows and write them to `out`.

    Raises UsageError for an unknown name and for a file that has no folder to be in.
    """
    if name not in NAMES:
        raise UsageError(f"no benchmark {name!r}; known: {', '.join(NAMES)}")
    if out and not out.absolute().parent.is_dir():
        raise UsageError(f"--json {out}: there is no folder {out.absolute().parent}; make it first")
    rows = import_module(f"jobs.bench.{name}").rows()
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in COLUMNS))
    Console().print(table)
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def row(
    name: str, unit: str, ours: float | None, *, better: str, target: str | None = None
) -> dict:
    """One measurement without a peer; `ours` is None where it was not reached."""
    return dict.fromkeys(COLUMNS) | {
        "name": name,
        "unit": unit,
        "ours": None if ours is None else round(ours, 2),
        "better": better,
        "target": target,
    }
