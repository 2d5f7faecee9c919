"""`evaluate --report`: one page about an evaluation, which loads nothing and works from a file."""

from pathlib import Path
from typing import Any

from jobs.pages import render_with_script
from jobs.report.charts import Chart, line_chart
from jobs.report.figures import Figures
from jobs.score_tables import LADDER
from pipeline.run.folder import all_scores
from pipeline.run.track import METRICS
from pipeline.score.headline import HEADLINE
from shards.files import disk_errors, whole_file
from shards.format.taxonomy import Taxonomy
from shards.jsonl import rows
from shards.text import say

SIGNATURE = "mask2former evaluate"  # in every page that the command writes
MATRIX = 20  # classes of the table of confusions
POINTS = 400  # of a curve
ERRORS = {
    "class": "a right mask of a wrong class",
    "location": "a right class with a poor mask",
    "both": "a poor mask of a wrong class",
    "duplicate": "a second detection of the same object",
    "background": "nothing there",
    "missed": "an object that was not found",
}
SHARED = ("PQ", "SQ", "RQ", "AP", "AP50", "IoU")  # scores of a class


def write_report(
    path: Path,
    title: str,
    scores: dict[str, Any],
    taxonomy: Taxonomy,
    figures: Figures,
    run: Path | None,
) -> None:
    """Write the page.

    Args:
        path: The page.
        title: What was scored, in words.
        scores: The scores in percent, with `classes` and `analysis`.
        taxonomy: The classes.
        figures: The pictures.
        run: The folder of the run, for its curves; None if weights alone were scored.
    """
    reasons = scores.get("analysis", {})
    segments, detections = reasons.get("panoptic"), reasons.get("instance")
    charts = [*_curves(run), *_reliability(segments, detections)]
    data = {
        "classes": [
            [category.name, list(category.color), category.isthing]
            for category in taxonomy.categories
        ],
        "rows": [_class_row(row) for row in scores["classes"]],
        "columns": [name for name in SHARED if any(name in row for row in scores["classes"])],
        "worst": figures.worst,
        "mistakes": figures.mistakes,
        "quality": _quality_name(scores),
    }
    page = render_with_script(
        "report/page.html",
        "report/page.js",
        data,
        signature=SIGNATURE,
        title=title,
        tiles=_tiles(scores),
        ladder=_ladder(scores.get("PQ"), segments),
        errors=_errors(detections),
        groups=_groups(segments),
        best=_best_threshold(segments),
        matrix=_matrix(segments, taxonomy),
        charts=[chart for chart in charts if chart],
        worst=len(figures.worst),
        mistakes=len(figures.mistakes),
    )
    with disk_errors(path), whole_file(path) as file:
        file.write(page.encode())
    say(f"{path}: open this page in a browser")


def _tiles(scores: dict[str, Any]) -> dict[str, str]:
    """Return the headline scores by their names."""
    known = {name: scores[name] for name in HEADLINE if scores.get(name) is not None}
    return {name: f"{value:.1f}" for name, value in known.items()} | {
        "images": f"{scores['images']:,}"
    }


def _ladder(quality: float | None, segments: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return PQ, and what it would be after each correction."""
    if segments is None or quality is None:
        return []
    found = [{"name": "PQ as it is", "value": quality, "gain": None}]
    for name, text in LADDER.items():
        value = segments["ladder"][name]["PQ"]
        found.append({"name": text, "value": value, "gain": value - quality})
    return found


def _errors(detections: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the points of AP50 that each kind of error costs, the largest first."""
    if not detections or detections.get("AP50") is None:
        return []
    found = [
        {"name": name, "text": ERRORS.get(name, ""), "value": one["AP50"]}
        for name, one in detections["errors"].items()
        if one["AP50"] is not None
    ]
    return sorted(found, key=lambda one: -one["value"])


def _groups(segments: dict[str, Any] | None) -> dict[str, list[dict[str, Any]]]:
    """Return PQ by the size of segments and by their number per image."""
    if segments is None:
        return {}
    return {"PQ by size": segments["sizes"], "PQ by segments per image": segments["crowding"]}


def _best_threshold(segments: dict[str, Any] | None) -> str:
    """Return which score threshold gives the best PQ; "" if it is not defined."""
    if segments is None or segments["thresholds"]["best_PQ"] is None:
        return ""
    best = max(value for value in segments["thresholds"]["PQ"] if value is not None)
    return f"PQ would be {best:.1f} for segments above {segments['thresholds']['best_PQ']:g}"


def _matrix(segments: dict[str, Any] | None, taxonomy: Taxonomy) -> dict[str, Any] | None:
    """Return the counts between the classes that are confused most, with misses and inventions."""
    if segments is None:
        return None
    count = len(taxonomy)
    cells = {(true, predicted): number for true, predicted, number in segments["confusion"]}
    wrong = {pair: number for pair, number in cells.items() if pair[0] != pair[1]}
    by_class = [sum(n for pair, n in wrong.items() if c in pair) for c in range(count)]
    ranked = sorted(range(count), key=lambda c: -by_class[c])[:MATRIX]
    shown = [*sorted(c for c in ranked if by_class[c]), count]
    most = max(wrong.values(), default=1)
    if len(shown) < 2:
        return None
    names = [*taxonomy.names, ""]
    return {
        "names": [names[c] or "not predicted" for c in shown],
        "rows": [
            {
                "name": names[true] or "not in the truth",
                "cells": [
                    {
                        "count": cells.get((true, predicted), 0),
                        "right": true == predicted,
                        "share": round(min(1, cells.get((true, predicted), 0) / most), 3),
                    }
                    for predicted in shown
                ],
            }
            for true in shown
        ],
    }


def _class_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of the scores of a class."""
    return {name: row.get(name) for name in (*SHARED, "images", "predicted_in", "highest_score")}


def _quality_name(scores: dict[str, Any]) -> str:
    if scores.get("PQ") is not None:
        return "PQ of the image"
    return "F1 of the image" if scores.get("AP") is not None else "pixel accuracy"


def _curves(run: Path | None) -> list[Chart | None]:
    """Return the scores and the losses of a run over its steps."""
    if run is None:
        return []
    scored = all_scores(run)
    names = [name for name in ("PQ", "AP", "mIoU") if any(s.get(name) for s in scored)]
    lines = {name: [(s["step"], s[name]) for s in scored if s.get(name)] for name in names}
    logged = [row for row in rows(run / METRICS) if isinstance(row.get("step"), int)]
    logged = logged[:: max(1, len(logged) // POINTS)]
    losses = {"loss": [(row["step"], row["loss"]) for row in logged if "loss" in row]}
    return [
        line_chart("Scores of the run", lines, "step"),
        line_chart("Loss of the run", losses, "step"),
    ]


def _reliability(
    segments: dict[str, Any] | None, detections: dict[str, Any] | None
) -> list[Chart | None]:
    """Return how well scores tell what is right, and the scores of all thresholds."""
    found = {"segments": segments, "instances": detections}
    lines: dict[str, list[tuple[float, float]]] = {
        name: list(zip(one["calibration"]["score"], one["calibration"]["accuracy"], strict=True))
        for name, one in found.items()
        if one
    }
    charts = [line_chart("Share that is right, by score (%)", lines, "score, %")] if lines else []
    if segments:
        tried = segments["thresholds"]
        by_score = {
            name: list(zip(tried["threshold"], tried[name], strict=True)) for name in ("PQ", "F1")
        }
        charts.append(line_chart("PQ and F1 by least score", by_score, "least score of segments"))
    return charts
