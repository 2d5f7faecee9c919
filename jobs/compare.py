"""`evaluate A B`: the differences between two evaluations, from their records."""

import contextlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs import config as configs
from jobs.stored import opened
from pipeline.run.folder import EVALUATIONS, RECORD_SUFFIX
from pipeline.score.compare import INTERVAL
from pipeline.score.compare import compare as score
from pipeline.score.record import Record
from shards.errors import UsageError, some_of
from shards.files import is_url
from shards.text import say

SAME = "evaluate both on the same data: ./launch.sh evaluate RUN --data SET"


def compare(one: str, other: str) -> dict[str, Any]:
    """Compare two evaluations, and print the differences.

    Args:
        one: A run by name, path, or URL, whose latest evaluation is taken, or a record (.npz).
        other: Another, on the same images.

    Returns:
        The `records` and the `scores`; see `pipeline.score.compare`.

    Raises:
        UsageError: There is no record, or the records are of different images or classes.
        DataError: A record is damaged.
    """
    with contextlib.ExitStack() as stack:
        paths = [_record(name, stack) for name in (one, other)]
        first, second = (Record.load(path) for path in paths)
    _check_same(first, second, where=f"{one} and {other}")
    rows = score(first, second)
    say(f"A: {one} ({paths[0].stem})")
    say(f"B: {other} ({paths[1].stem})")
    table = Table("score", "A", "B", "B - A", f"{INTERVAL} % interval", "")
    for row in rows:
        differs = row["low"] > 0 or row["high"] < 0
        verdict = ("B is higher" if row["low"] > 0 else "A is higher") if differs else "no evidence"
        numbers = f"{row['one']:.2f}", f"{row['other']:.2f}", f"{row['difference']:+.2f}"
        table.add_row(row["name"], *numbers, f"{row['low']:+.2f} to {row['high']:+.2f}", verdict)
    Console().print(table)
    say(f"the interval is over which {len(first.images)} images are drawn; it says nothing "
        "about another training of the same run")  # fmt: skip
    return {"records": [str(path) for path in paths], "scores": rows}


def _record(name: str, stack: contextlib.ExitStack) -> Path:
    """Return the path of a record: the given one, or that of the latest evaluation of a run."""
    if Path(name).suffix == RECORD_SUFFIX and not is_url(name):
        if not Path(name).is_file():
            raise UsageError("no such record", where=name, fix="give a run, or a .npz file")
        return Path(name).absolute()
    if not is_url(name):
        folder = configs.run_folder(name)
    else:
        folder = stack.enter_context(opened(name, needs_weights=False))
    found = (folder / EVALUATIONS).glob(f"*{RECORD_SUFFIX}")
    latest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if latest is None:
        fix = f"evaluate it first: ./launch.sh evaluate {name}"
        raise UsageError("the run has no record of an evaluation", where=name, fix=fix)
    return latest


def _check_same(one: Record, other: Record, where: str) -> None:
    """Check that two records are of the same images and classes.

    Raises:
        UsageError: They are not.
    """
    names = [record.about["names"] for record in (one, other)]
    if names[0] != names[1]:
        differing = [name for name in names[0] if name not in names[1]]
        differing += [name for name in names[1] if name not in names[0]]
        what = some_of(differing, 4) if differing else "their order"
        raise UsageError(f"the classes differ: {what}", where=where, fix=SAME)
    sets = [set(record.images) for record in (one, other)]
    if sets[0] != sets[1]:
        raise UsageError(
            f"the images differ: {len(sets[0])} and {len(sets[1])} images, of which "
            f"{len(sets[0] & sets[1])} are the same",
            where=where,
            fix=SAME,
        )
    if one.about["data"] != other.about["data"]:
        raise UsageError("the images have different truth", where=where, fix=SAME)
