"""`bench NAME`: what we claim, measured; rows for people and for machines."""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from shards.errors import UsageError

NAMES = tuple(module.name for module in iter_modules(__path__))


def bench(name: str, out: Path | None = None) -> list[dict]:
    """Run one benchmark; print its rows and write them to `out`.

    Raises UsageError for an unknown name and for a file that has no folder to be in.
    """
    if name not in NAMES:
        raise UsageError(f"no benchmark {name!r}; known: {', '.join(NAMES)}")
    if out and not out.absolute().parent.is_dir():
        raise UsageError(f"--json {out}: there is no folder {out.absolute().parent}; make it first")
    rows = import_module(f"jobs.bench.{name}").rows()
    table = Table(Column("name", no_wrap=True), "ours", "peer", "ratio", "aim", box=SIMPLE)
    for row in rows:
        ours, peer = _words(row["ours"], row["unit"]), _words(row["peer"], row["peer_name"])
        table.add_row(row["name"], ours, peer, _words(row["ratio"]), row["target"])
    Console().print(table)
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def row(
    name: str,
    unit: str,
    ours: float | None,
    *,
    better: str,
    target: str | None = None,
    peer: float | None = None,
    peer_name: str | None = None,
) -> dict:
    """One measurement; None is what was not reached, or has no peer. `ratio` is ours to peer's."""
    return {
        "name": name,
        "unit": unit,
        "ours": ours and _short(ours),
        "peer": peer and _short(peer),
        "peer_name": peer_name,
        "ratio": _short(ours / peer) if ours is not None and peer else None,
        "better": better,
        "target": target,
    }


def _words(*parts: object) -> str:
    return "" if parts[0] is None else " ".join(map(str, parts))


def _short(value: float) -> float:
    """To two decimals, and to three digits where that is finer."""
    return round(value, 2) if abs(value) >= 1 else float(f"{value:.3g}")


def alternate(works: dict[str, Callable[[], object]], times: int = 5) -> dict[str, float]:
    """Seconds that each of `works` takes, median of `times` turns, after one that does not count.

    They take turns, so that what else the machine does falls on all of them alike.
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
    """Peak resident memory, MiB, of a new process that calls an importable function. Linux only."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(function, *args).result()
        return pool.submit(peak_mib_of).result()


def peak_mib_of(process: int | str = "self") -> float:
    """Peak resident memory, MiB, of a process so far; getrusage would count its parent's pages."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
