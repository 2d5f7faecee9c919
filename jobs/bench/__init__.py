"""`bench NAME`: measured claims, as a table and as JSON to keep in benchmarks/.

A benchmark is a module here whose `rows()` measures ours and, if there is one, a peer: another
implementation of the same work with the same inputs. What counts is their ratio, because the
absolute figures depend on the machine.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from jobs.bench import machine, report
from shards.errors import UsageError

Row = dict[str, Any]

NAMES = (
    *("attention", "build", "evaluate", "gpu", "overfit", "recovery", "segment", "step"),
    *("stream", "stream_decode", "train"),
)
REPORT = "report"
RESULTS = Path("benchmarks")  # of kept results, in the current folder


def bench(name: str) -> dict[str, Any]:
    """Run one benchmark and print its rows, or print the report about the kept results.

    Args:
        name: One of NAMES, or REPORT.

    Returns:
        What to keep in benchmarks/: the benchmark's name, the date, the machine, the versions of
        the libraries, and the rows. For the report, the names of the rows that miss their target.

    Raises:
        UsageError: The name is unknown, or there are no results to report.
    """
    if name == REPORT:
        text, missed = report.render(RESULTS)
        print(text)
        return {"missed": missed}
    if name not in NAMES:
        raise UsageError(f"no benchmark {name!r}", fix=f"known: {', '.join((*NAMES, REPORT))}")
    rows = import_module(f"jobs.bench.{name}").rows()
    table = Table(Column("name", no_wrap=True), "ours", "peer", "ratio", "target", box=SIMPLE)
    for measured in rows:
        table.add_row(measured["name"], *report.cells(measured))
    Console().print(table)
    return {"benchmark": name, **machine.facts(), "rows": rows}


def row(
    name: str,
    unit: str,
    ours: float | None,
    *,
    better: str,
    target: str | None = None,
    peer: float | None = None,
    peer_name: str | None = None,
) -> Row:
    """Return one measurement.

    Args:
        name: Dotted name, the benchmark first: `step.time.r50_512`.
        unit: Unit of `ours` and `peer`.
        ours: The measured value; None if it was not reached.
        better: "lower" or "higher".
        target: What `ours` must fulfill: `<= 15` compares the value, `<= 0.6x` the ratio,
            `<= 0.2 s more` the difference to the peer, and `0.7x to 1.3x` bounds the ratio.
        peer: The value of the peer, measured beside ours.
        peer_name: Who or what the peer is.

    Returns:
        The arguments, rounded, with `ratio`, which is ours divided by the peer's.

    Raises:
        ValueError: The target has another form.
    """
    measured = {
        "name": name,
        "unit": unit,
        "ours": None if ours is None else _rounded(ours),
        "peer": None if peer is None else _rounded(peer),
        "peer_name": peer_name,
        "ratio": _rounded(ours / peer) if ours is not None and peer else None,
        "better": better,
        "target": target,
    }
    report.is_met(measured)  # checks the target's form
    return measured


def alternate(works: Mapping[str, Callable[[], object]], times: int = 5) -> dict[str, float]:
    """Time several functions in turns and return the median seconds of each.

    The functions take turns (a, b, a, b, ...), so that a slow spell of the machine hits all of them
    alike and leaves their ratio. A first turn warms up caches and compilers and is not counted.

    Args:
        works: The functions by name.
        times: Number of counted turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(times + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def peak_mib(function: Callable[..., object], *args: object) -> float:
    """Return the peak resident memory in MiB of a new process that calls a function (Linux only).

    Args:
        function: An importable function.
        args: Its arguments.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(function, *args).result()
        return pool.submit(peak_mib_of).result()


def peak_mib_of(process: int | str = "self") -> float:
    """Return the peak resident memory of a process so far, in MiB.

    getrusage would include the pages that a forked process inherits from its parent.
    """
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _rounded(value: float) -> float:
    """Round to two decimals, or to three significant digits below 1."""
    return round(float(value), 2) if abs(value) >= 1 else float(f"{value:.3g}")
