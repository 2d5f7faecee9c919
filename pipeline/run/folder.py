"""The run folder: where its files are, which step scored best, and its summary."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from model.mask2former import Mask2Former
from pipeline.run import checkpoint
from pipeline.run.quarantine import QUARANTINE
from pipeline.run.track import METRICS
from pipeline.score.evaluate import HEADLINE, METRIC_OF_TASK
from pipeline.settings import RunSettings
from shards.errors import UsageError
from shards.files import write_json
from shards.format.taxonomy import Taxonomy
from shards.jsonl import keep_rows, rows

CHECKPOINTS = "checkpoints"
EVALUATIONS = "evaluations"
PICTURES = "pictures"
SUMMARY = "summary.json"


def scores_path(folder: Path, step: int) -> Path:
    """The file that holds the scores of a step on the run's val set."""
    return folder / EVALUATIONS / f"step-{step:09d}.json"


def all_scores(folder: Path) -> list[dict[str, Any]]:
    """Every evaluation of the run, by step."""
    return [json.loads(path.read_text()) for path in sorted((folder / EVALUATIONS).glob("step-*"))]


def best_step(folder: Path, task: str) -> int | None:
    """The step that scored highest in `task`, the last of equals; None without a score."""
    metric = METRIC_OF_TASK[task]
    scored = [scores for scores in all_scores(folder) if scores.get(metric) is not None]
    return max((scores[metric], scores["step"]) for scores in scored)[1] if scored else None


def rewind(folder: Path, step: int) -> None:
    """Drop metrics, scores and damage past `step`: a resumed run makes them again."""
    for name in (METRICS, QUARANTINE):
        keep_rows(folder / name, lambda row: row["step"] <= step)
    for path in (folder / EVALUATIONS).glob("step-*"):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()


def choose_checkpoint(folder: Path, which: str | None, task: str) -> Path:
    """The checkpoint called `best`, `last` or by its step; best where a score is known, else last.

    Raises UsageError if the run has no such checkpoint.
    """
    whole = {checkpoint.step_of(path): path for path in reversed(
        checkpoint.committed(folder / CHECKPOINTS))}  # fmt: skip
    if not whole:
        raise UsageError(f"{folder} has no checkpoint yet; train it first")
    best = best_step(folder, task)
    if which in (None, "best"):
        step = best if best in whole else max(whole)
    elif which == "last":
        step = max(whole)
    elif which.isdigit():
        step = int(which)
    else:
        raise UsageError(f"--checkpoint {which}: give best, last or a step")
    if step not in whole:
        raise UsageError(f"--checkpoint {which}: the run has steps {sorted(whole)}")
    return whole[step]


def summarize(folder: Path, task: str) -> dict[str, Any]:
    """Write and return summary.json: the best scores, where they are, and what they took."""
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


def initial_weights(init_from: str, task: str) -> Path:
    """The file or folder behind `model.init_from`: of a run, its best checkpoint, verified.

    Raises UsageError if the run has no checkpoint or if its bytes are not as written.
    """
    path = Path(init_from)
    if (path / CHECKPOINTS).is_dir():
        path = choose_checkpoint(path, None, task)
    if (path / checkpoint.MANIFEST).is_file() and (problem := checkpoint.damage(path)):
        raise UsageError(f"model.init_from={path} is damaged ({problem}); name another")
    return path


def load_model(
    settings: RunSettings, folder: Path, which: str | None, device: torch.device
) -> tuple[Mask2Former, Taxonomy, int]:
    """The model of a run's checkpoint in eval mode, its label space, and the checkpoint's step.

    Raises UsageError if the run has no such checkpoint or if its bytes are not as written.
    """
    path = choose_checkpoint(folder, which, settings.task)
    if problem := checkpoint.damage(path):
        raise UsageError(f"{path} is damaged ({problem}); name another with --checkpoint")
    state, trainer = checkpoint.load(path)
    taxonomy = Taxonomy.from_json(trainer["taxonomy"])
    bare = dataclasses.replace(settings.model, weights="none", compile=False)
    model = Mask2Former(bare, len(taxonomy))
    weights = {name.removeprefix("model."): tensor for name, tensor in state.items()
               if name.startswith("model.")}  # fmt: skip
    model.load_state_dict(weights)
    return model.to(device).eval(), taxonomy, trainer["step"]
