"""What a terminal shows of work that takes a while; other outputs are left alone."""

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


@contextlib.contextmanager
def progress(name: str, total: int, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; the function it gives says how much more is done."""
    console = Console(stderr=True)
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = TextColumn(name), BarColumn(), amount, TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task(name, total=total)
        yield lambda more: bars.advance(bar, more)
