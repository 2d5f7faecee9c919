"""`bench report`: the results in benchmarks/*.json as tables of Markdown."""

import json
import operator
import re
from pathlib import Path
from typing import Any

from shards.errors import DataError, UsageError

HEADING = """# Benchmarks

`./launch.sh bench report > BENCHMARKS.md` renders this page from `benchmarks/*.json`.
[docs/benchmarks.md](docs/benchmarks.md) describes what is measured and explains the figures.
"""
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
BOUND = re.compile(r"(<=|>=|<|>) ([\d.]+(?:e-?\d+)?)(x| \w+ more)?")
RANGE = re.compile(r"([\d.]+)x to ([\d.]+)x")


def render(folder: Path) -> tuple[str, list[str]]:
    """Render the results in a folder, one table per file.

    Args:
        folder: Holds the JSON files that `bench NAME --json` printed.

    Returns:
        Markdown, sorted by benchmark, machine, and date (the latest first), and the names of the
        rows that miss their target.

    Raises:
        UsageError: The folder holds no JSON file.
        DataError: A file is not the result of a benchmark.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        fix = f"keep one: ./launch.sh bench step --json > {folder}/step.json"
        raise UsageError("no results (*.json)", where=folder, fix=fix)
    results = [_load(path) for path in paths]
    results.sort(key=lambda result: result["date"], reverse=True)
    results.sort(key=lambda result: (result["benchmark"], _machine(result)))
    lines, missed, section = [*HEADING.splitlines(), ""], [], None
    for result in results:
        if result["benchmark"] != section:
            section = result["benchmark"]
            lines += [f"## `./launch.sh bench {section}`", ""]
        versions = ", ".join(f"{name} {found}" for name, found in result["versions"].items())
        lines += [f"{_machine(result)}; {result['date']}; {versions}.", ""]
        lines += ["| | ours | peer | ratio | target |", "|---|---|---|---|---|"]
        for row in result["rows"]:
            lines.append(f"| {row['name']} | {' | '.join(cells(row))} |")
            missed += [row["name"]] if is_met(row) is False else []
        notes = [row for row in result["rows"] if row.get("note")]
        lines += ["", *(f"- {row['name']}: {row['note']}" for row in notes)] if notes else []
        lines.append("")
    return "\n".join(lines).rstrip(), missed


def cells(row: dict[str, Any]) -> list[str]:
    """Return the text of a row's ours, peer, ratio, and target; a missed target is marked."""
    target = row["target"] or ""
    return [
        _text(row["ours"], row["unit"]),
        _text(row["peer"], row["peer_name"]),
        _text(row["ratio"]),
        f"{target} **missed**" if is_met(row) is False else target,
    ]


def is_met(row: dict[str, Any]) -> bool | None:
    """Return whether a row meets its target; None without a target.

    A value that was not reached, or a ratio without a peer, misses its target.

    Raises:
        ValueError: The target has none of the forms that `jobs.bench.row` describes.
    """
    target = row["target"]
    if target is None:
        return None
    if match := RANGE.fullmatch(target):
        low, high = (float(bound) for bound in match.groups())
        return row["ratio"] is not None and low <= row["ratio"] <= high
    match = BOUND.fullmatch(target)
    if not match:
        raise ValueError(f"{row['name']}: target {target!r} is not a bound such as '<= 0.6x'")
    sign, bound, kind = match.groups()
    value = row["ratio"] if kind == "x" else row["ours"]
    if kind not in (None, "x"):  # "<= 0.2 s more" than the peer
        value = None if None in (row["ours"], row["peer"]) else row["ours"] - row["peer"]
    return value is not None and COMPARE[sign](value, float(bound))


def _load(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
        missing = {"benchmark", "date", "machine", "versions", "rows"} - result.keys()
    except (ValueError, AttributeError) as error:
        raise DataError(f"not the result of a benchmark ({error})", where=path) from error
    if missing:
        raise DataError(f"lacks {', '.join(sorted(missing))}", where=path, fix="measure again")
    return result


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    gpu = machine["gpu"] or "no GPU"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpu}"


def _text(*parts: object) -> str:
    return "" if parts[0] is None else " ".join(str(part) for part in parts if part is not None)
