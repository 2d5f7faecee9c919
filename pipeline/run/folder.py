"""The run folder: its paths, its scores, the choice of a checkpoint, and the summary of the run."""

import json
from pathlib import Path
from typing import Any

from pipeline.run import checkpoint
from pipeline.run.quarantine import QUARANTINE
from pipeline.run.track import METRICS
from pipeline.score.headline import HEADLINE, METRIC_OF_TASK
from shards.errors import UsageError
from shards.files import write_json
from shards.jsonl import keep_rows, rows

CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations"
PICTURES = "pictures"
SUMMARY = "summary.json"


def scores_path(folder: Path, step: int) -> Path:
    """Return the path of the scores of a step on the run's val set."""
    return folder / EVALUATIONS / f"step-{step:09d}.json"


def all_scores(folder: Path) -> list[dict[str, Any]]:
    """Return every evaluation of the run on its val set, sorted by step."""
    return [json.loads(path.read_text()) for path in sorted((folder / EVALUATIONS).glob("step-*"))]


def best_step(folder: Path, task: str) -> int | None:
    """Return the step with the best score of `task`, the latest of ties; None without scores."""
    metric = METRIC_OF_TASK[task]
    scored = [scores for scores in all_scores(folder) if scores.get(metric) is not None]
    return max((scores[metric], scores["step"]) for scores in scored)[1] if scored else None


def rewind(folder: Path, step: int) -> None:
    """Drop metrics, quarantine rows, and scores past `step`; the resumed run writes them again."""
    for name in (METRICS, QUARANTINE):
        keep_rows(folder / name, lambda row: row["step"] <= step)
    for path in (folder / EVALUATIONS).glob("step-*"):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()


def choose_checkpoint(folder: Path, which: str | None, task: str) -> Path:
    """Return the folder of a checkpoint of a run.

    Args:
        folder: The run folder.
        which: "last", a step, or "best" (also None): the checkpoint of the best step, or the last
            checkpoint if no step is scored or the best step has no checkpoint any more.
        task: The task whose score decides.

    Raises:
        UsageError: `which` has another form, or the run has no such checkpoint.
    """
    whole = {checkpoint.step_of(path): path for path in reversed(
        checkpoint.committed(folder / CHECKPOINTS))}  # fmt: skip
    if not whole:
        raise UsageError("the run has no checkpoint yet", where=folder, fix="train it first")
    best = best_step(folder, task)
    if which in (None, "best"):
        step = best if best in whole else max(whole)
    elif which == "last":
        step = max(whole)
    elif which.isdigit():
        step = int(which)
    else:
        raise UsageError(
            "not the name of a checkpoint",
            where=f"--checkpoint {which}",
            fix="give best, last, or a step",
        )
    if step not in whole:
        raise UsageError(
            "the run has no checkpoint of this step",
            where=f"--checkpoint {which}",
            fix=f"give one of {sorted(whole)}",
        )
    return whole[step]


def summarize(folder: Path, task: str) -> dict[str, Any]:
    """Write summary.json and return it: the scores of the best step, and the cost of the run."""
    step = best_step(folder, task)
    scores = next((s for s in all_scores(folder) if s["step"] == step), {})
    trained = [row for row in rows(folder / METRICS) if "position" in row]
    summary = {name: scores.get(name) for name in HEADLINE} | {
        "step": step,
        "position": trained[-1]["position"] if trained else 0,
        "wall_s": round(sum(row["interval_s"] for row in trained), 1),
        "checkpoint": choose_checkpoint(folder, None, task).name,
        "pictures": sorted(p.name for p in (folder / PICTURES).glob("*.png")),
    }
    write_json(folder / SUMMARY, summary)
    return summary
