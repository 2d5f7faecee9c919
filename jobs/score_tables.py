"""Scores as tables for a terminal: the headline, the ladder of PQ, and the split of AP50."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.data.store import Store
from pipeline.score.headline import HEADLINE
from pipeline.score.inference import InferenceSettings, why_empty
from shards.text import say

LADDER = {
    "classes": "if the classes were perfect",
    "masks": "if the masks were perfect",
    "merge": "if the pixels of each class were grouped perfectly",
    "misses": "if no segment were missed",
    "inventions": "if no segment were invented",
}
NAMED = 10  # classes without a prediction that are printed
CONFUSED = 3  # pairs of classes that are printed


def show(
    scores: dict[str, Any], title: str, settings: InferenceSettings, store: Store, path: Path
) -> None:
    """Print the scores and what explains them, and say where all of them are."""
    print_scores(scores, title)
    print_reasons(scores)
    for line in unpredicted(scores["classes"], settings, store.manifest.tasks):
        say(line)
    say(f"scores of all classes: {path}")


def unpredicted(
    classes: list[dict[str, Any]], settings: InferenceSettings, tasks: Collection[str]
) -> list[str]:
    """Return lines about the classes that occur in the truth and were never predicted."""
    true = [row for row in classes if row["images"]]
    missed = [row for row in true if not row["predicted_in"]]
    if not missed:
        return []
    missed.sort(key=lambda row: -row["highest_score"])
    names = [f"{row['name']} ({row['highest_score']:g})" for row in missed[:NAMED]]
    more = f", and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
    lines = [
        f"never predicted: {len(missed)} of the {len(true)} classes that occur, by their highest "
        f"score: {', '.join(names)}{more}"
    ]
    if {"panoptic", "instance"} & set(tasks):
        best = missed[0]["highest_score"]
        why = why_empty(best, settings.segment) if best else "no query predicts one at any score"
        lines.append(f"of these classes, {why}")
    if not any(row["predicted_in"] for row in classes):
        best = max(row["highest_score"] for row in classes)
        lines.append(f"nothing was predicted: {why_empty(best, settings.segment)}")
    return lines


def print_scores(scores: dict[str, Any], title: str) -> None:
    """Print a table of the headline scores."""
    known = [name for name in HEADLINE if scores.get(name) is not None]
    say(title)  # not as the title of the table, which would be wrapped in the middle of a path
    table = Table()
    for name in known:
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name]:.2f}" for name in known))
    Console().print(table)


def print_reasons(scores: dict[str, Any]) -> None:
    """Print why the scores are not higher: what each correction alone would give."""
    reasons = scores.get("analysis", {})
    segments, detections = reasons.get("panoptic"), reasons.get("instance")
    if segments and scores.get("PQ") is not None:
        table = Table("PQ would be", "", box=SIMPLE_HEAD, show_header=False)
        for name, text in LADDER.items():
            table.add_row(f"PQ {text}", f"{segments['ladder'][name]['PQ']:.1f}")
        Console().print(table)
        _say_confused(segments["confusion"], [row["name"] for row in scores["classes"]])
        best = segments["thresholds"]["best_PQ"]
        if best is not None:
            say(f"best PQ of all score thresholds: {max(segments['thresholds']['PQ']):.1f}, "
                f"for segments above {best:g}")  # fmt: skip
    if detections and detections["AP50"] is not None:
        errors = detections["errors"].items()
        parts = [f"{name} {one['AP50']:.1f}" for name, one in errors if one["AP50"] is not None]
        say(f"points that each kind of error costs AP50 ({detections['AP50']:.1f}): "
            f"{', '.join(parts)}")  # fmt: skip


def _say_confused(confusion: list[list[int]], names: list[str]) -> None:
    """Name the pairs of different classes that are confused most often, rarer ones left out."""
    pairs = [
        f"{names[t]} as {names[p]} ({count})"
        for t, p, count in confusion
        if t != p and max(t, p) < len(names)
    ]
    if pairs:
        say(f"confused most often: {', '.join(pairs[:CONFUSED])}")
