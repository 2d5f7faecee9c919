"""The `watch` and `runs` commands: what runs do, from their own files."""

import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from jobs.frame import BLOCKS, PLAIN_BLOCKS, duration, frame
from jobs.interrupts import handled
from jobs.records import FAILED, FINISHED, STOPPED, View, listed
from shards.errors import Failed
from shards.text import printable, say

EVERY_S = 2.0
PLAIN_WIDTH = 100  # if the output is not a terminal


def watch(run: str, once: bool) -> None:
    """Show a run until it ends, or until Ctrl-C. The run itself is not touched.

    Args:
        run: A name, a path, or a URL.
        once: Print one frame. If stdout is not a terminal, this happens anyway.

    Raises:
        UsageError: There is no such run.
        Failed: The storage does not answer.
    """
    view = View.of(run)
    console = Console()
    blocks = BLOCKS if (console.encoding or "").lower().startswith("utf") else PLAIN_BLOCKS
    if once or not console.is_terminal:
        width = console.width if console.is_terminal else PLAIN_WIDTH
        for line in frame(view, time.time(), width, blocks).split():
            if console.is_terminal:
                console.print(line, no_wrap=True, overflow="ellipsis", highlight=False)
            else:
                print(line.plain.rstrip())
        return
    ended = threading.Event()
    with handled(lambda *_: ended.set()), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(frame(view, time.time(), console.width, blocks), refresh=True)
            if view.state(time.time())[0] in (FINISHED, STOPPED, FAILED) or ended.wait(EVERY_S):
                return
            _read(view)


def _read(view: View) -> None:
    """Read what is new; if the storage is away, show what is known."""
    try:
        view.read()
    except Failed:
        return


def runs(location: str) -> list[dict[str, Any]]:
    """Print the runs at a location, and return them as JSON types.

    Args:
        location: A folder or a URL.

    Raises:
        UsageError: The folder does not exist.
        Failed: The storage does not answer.
    """
    rows = listed(location)
    if not rows:
        say(f"no runs at {location}; ./launch.sh train starts one")
        return rows
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "progress", "best", "last sign", "goodput"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(printable(cell) for cell in _cells(row)))
    console = Console()
    if console.is_terminal:
        console.print(table, highlight=False, markup=False)
    else:
        for cells in [[str(c.header) for c in table.columns], *map(_cells, rows)]:
            print("\t".join(printable(cell) for cell in cells))
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    if row["problem"]:
        return [row["name"], f"{row['state']}: {row['problem']}", "", "", "", ""]
    share = f"{row['step']}/{row['steps']}  {100 * row['step'] / row['steps']:.0f} %"
    best = f"{row['metric']} {row['best']:.1f} @ {row['best_step']}" if row["metric"] else ""
    age = "" if row["silent_s"] is None else f"{duration(row['silent_s'])} ago"
    useful = "" if row["goodput"] is None else f"{100 * row['goodput']:.0f} %"
    return [row["name"], row["state"], share, best, age, useful]
