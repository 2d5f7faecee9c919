"""The run folder: its paths, its scores, the choice of a checkpoint, and the summary of the run."""

import math
import os
import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pipeline.run import checkpoint, eventlog, quarantine, track
from pipeline.run.event import Event
from pipeline.run.eventlog import EVENTS
from pipeline.run.events import Checkpoint
from pipeline.run.ledger import goodput, ledger
from pipeline.run.quarantine import QUARANTINE
from pipeline.run.stop import STOP
from pipeline.run.track import METRICS
from pipeline.score.headline import HEADLINE, METRIC_OF_TASK
from shards.errors import UsageError
from shards.files import disk_errors, read_json, read_regular, whole_file, write_json
from shards.jsonl import keep_rows, rows

CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations"
RECORD_SUFFIX = ".npz"  # of the counters of an evaluation, beside its scores
PICTURES = "pictures"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
RECORDS = (METRICS, EVENTS, QUARANTINE)
_SCORES = re.compile(r"step-([0-9]{9,})\.json")


def scores_path(folder: Path, step: int) -> Path:
    """Return the path of the scores of a step on the run's val set."""
    return folder / EVALUATIONS / f"step-{step:09d}.json"


def scores_of(folder: Path, step: int) -> dict[str, Any]:
    """Return the scores of a step on the run's val set; empty if it has none that can be read."""
    try:
        scores = read_json(scores_path(folder, step))
    except (OSError, ValueError):
        return {}
    return scores if isinstance(scores, dict) and scores.get("step") == step else {}


def all_scores(folder: Path) -> list[dict[str, Any]]:
    """Return every evaluation of the run on its val set, sorted by step."""
    return [scores for step in sorted(_scored_steps(folder)) if (scores := scores_of(folder, step))]


def _scored_steps(folder: Path) -> list[int]:
    """Return the steps in the names of score files. A copy or a leftover has another name."""
    names = [_SCORES.fullmatch(path.name) for path in (folder / EVALUATIONS).glob("step-*")]
    return [int(match[1]) for match in names if match]


def best_step(folder: Path, task: str, among: Collection[int] | None = None) -> int | None:
    """Return the step with the best score of `task`, the latest of ties; None without scores.

    Only scores of one set and number of images are compared: those of the latest scored step.

    Args:
        folder: The run folder.
        task: The task whose score decides.
        among: The steps to choose from; None for all.
    """
    metric = METRIC_OF_TASK[task]
    scored = [
        scores
        for scores in all_scores(folder)
        if _is_number(scores.get(metric)) and (among is None or scores["step"] in among)
    ]
    comparable = [scores for scores in scored if _images(scores) == _images(scored[-1])]
    return max(((s[metric], s["step"]) for s in comparable), default=(0, None))[1]


def _images(scores: dict[str, Any]) -> tuple[Any, Any]:
    """Return what a score belongs to: the fingerprint of the set, and the number of images."""
    return scores.get("data"), scores.get("images")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def check_files(folder: Path) -> None:
    """Check that everything to which training will write belongs to this run.

    Raises:
        UsageError: A record is a link or no file, or a folder of the run lies in another run, or
            one of them cannot be written.
    """
    fix = "move it away, and run the same command again"
    for name in (*RECORDS, SUMMARY, STOP):
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UsageError("not a regular file of the run", where=path, fix=fix)
    for path in (folder, *(folder / name for name in (*RECORDS, CHECKPOINTS, EVALUATIONS))):
        if path.exists() and not os.access(path, os.W_OK):
            fix = "allow it (chmod u+w), and run the same command again"
            raise UsageError("you may not write it", where=path, fix=fix)
    for name in (CHECKPOINTS, EVALUATIONS, PICTURES):
        path = folder / name
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise UsageError("not a folder", where=path, fix=fix)
        parent = path.resolve().parent
        if parent != folder.resolve() and (parent / CONFIG).exists():
            raise UsageError(f"a link into the run {parent}", where=path, fix=fix)


def detach_records(folder: Path) -> None:
    """Copy the records that are hard links, so that a copy of the run (`cp -al`) keeps its own."""
    for path in (folder / name for name in RECORDS):
        if path.exists() and path.stat().st_nlink > 1:
            content = read_regular(path)
            with whole_file(path) as file:
                file.write(content)


def rewind(folder: Path, step: int) -> dict[str, int]:
    """Drop metrics, quarantine rows, and scores past `step`; the resumed run writes them again.

    Returns:
        The number of lines of each record that could not be read, and were dropped too.
    """
    dropped = {}
    with disk_errors(folder):
        for name, fields in ((METRICS, track.FIELDS), (QUARANTINE, quarantine.FIELDS)):
            dropped[name] = keep_rows(folder / name, fields, lambda row: row["step"] <= step)
        for scored in _scored_steps(folder):
            if scored > step:
                for suffix in (".json", RECORD_SUFFIX):
                    scores_path(folder, scored).with_suffix(suffix).unlink(missing_ok=True)
    return dropped


def choose_checkpoint(folder: Path, which: str | None, task: str) -> Path:
    """Return the folder of a checkpoint of a run.

    Args:
        folder: The run folder.
        which: "last", a step, or "best" (also None): the checkpoint with the best score, or the
            last checkpoint if none has a score.
        task: The task whose score decides.

    Raises:
        UsageError: `which` has another form, or the run has no such checkpoint.
    """
    whole = {checkpoint.step_of(path): path for path in reversed(
        checkpoint.committed(folder / CHECKPOINTS))}  # fmt: skip
    if not whole:
        raise UsageError("the run has no checkpoint yet", where=folder, fix="train it first")
    if which in (None, "best"):
        best = best_step(folder, task, whole)
        step = max(whole) if best is None else best
        if (scored := best_step(folder, task)) not in (None, step):
            warnings.warn(
                f"the best score is of step {scored}, which has no checkpoint; step {step} is used",
                stacklevel=2,
            )
    elif which == "last":
        step = max(whole)
    elif which.isdecimal():
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


def last_sign(folder: Path) -> float:
    """Return the time of the latest row of metrics, in seconds since 1970; 0 without any."""
    times = [row["time"] for row in rows(folder / METRICS) if _is_number(row.get("time"))]
    return max(times, default=0.0)


def _cost_of_checkpoints(history: Sequence[Event]) -> dict[str, float] | None:
    """Return what the last checkpoint for which training did not wait has cost."""
    saved = [event for event in history if isinstance(event, Checkpoint)]
    last = next((event for event in reversed(saved) if event.suggested_minutes), None)
    names = ("stall_s", "write_s", "suggested_minutes")
    return last and {name: round(getattr(last, name), 3) for name in names}


def summarize(folder: Path, task: str, *unwritten: Event) -> dict[str, Any]:
    """Write and return the summary: the best checkpoint, its scores, and the cost of the run.

    Args:
        folder: The run folder.
        task: The task whose score decides which checkpoint is the best one.
        unwritten: Events of the run that are not in its records yet.
    """
    best = choose_checkpoint(folder, None, task)
    step = checkpoint.step_of(best)
    scores = scores_of(folder, step)
    trained = [
        row for row in rows(folder / METRICS)
        if _is_number(row.get("position")) and _is_number(row.get("interval_s"))
    ]  # fmt: skip
    history = [*eventlog.read(folder), *unwritten]
    seconds = ledger(history)
    summary = {name: scores.get(name) for name in HEADLINE} | {
        "images": scores.get("images"),
        "step": step,
        "position": trained[-1]["position"] if trained else 0,
        "wall_s": round(sum(row["interval_s"] for row in trained), 1),
        "ledger_s": {kind: round(spent, 1) for kind, spent in seconds.items()},
        "goodput": goodput(seconds),
        "checkpoint": best.name,
        "checkpoints": _cost_of_checkpoints(history),
        "pictures": sorted(p.name for p in (folder / PICTURES).glob("*.png")),
    }
    with disk_errors(folder / SUMMARY):
        write_json(folder / SUMMARY, summary)
    return summary
