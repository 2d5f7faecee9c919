"""Progress bars for work that takes a while."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from shards.text import printable


@contextlib.contextmanager
def progress(name: str, total: int, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr if that is a terminal.

    Args:
        name: The text before the bar.
        total: The amount of work.
        in_bytes: Show the amount in bytes.

    Yields:
        A function that advances the bar by an amount.
    """
    console = Console(stderr=True)
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    # `name` may hold the syntax of formats and of rich's markup
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        amount,
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(printable(name), total=total)
        yield lambda more: bars.advance(bar, more)
