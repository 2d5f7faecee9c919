"""`export`: a run in the formats of other libraries and runtimes, with a model card."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from jobs import config as configs
from jobs.export import card
from jobs.export.hub import write_hub
from jobs.export.programs import write_onnx, write_program
from jobs.export.source import Source
from jobs.export.weights import write_detectron2, write_transformers
from jobs.outputs import check_apart, refusals
from model.weights.classes import permute_classes
from pipeline.run.folder import CHECKPOINTS, EVALUATIONS, PICTURES
from pipeline.run.restore import load_model
from shards.errors import UsageError
from shards.files import sync
from shards.format.schema import TASKS
from shards.format.taxonomy import Taxonomy
from shards.text import say

EXPORTS = "exports"
# A program is the network with the segmentation of one task, and its writer returns its parity.
PROGRAMS: dict[str, Callable[[Path, Source], dict[str, Any]]] = {
    "onnx": write_onnx,
    "torch-export": write_program,
}
WRITERS: dict[str, Callable[[Path, Source], dict[str, Any] | None]] = {
    "transformers": write_transformers,
    "detectron2": write_detectron2,
    "hub": write_hub,
    **PROGRAMS,
}


def export(
    run: str,
    to: str,
    out: Path | None = None,
    checkpoint: str | None = None,
    task: str | None = None,
) -> Path:
    """Write a checkpoint in a format, with a model card, to a new folder.

    The folder is written under a temporary name and renamed at the end, so that it is complete if
    it exists.

    Args:
        run: A name under runs/, or a path.
        to: "transformers": a folder for `Mask2FormerForUniversalSegmentation.from_pretrained`, with
            the image processor. "detectron2": a pickle of arrays under the official names. "hub":
            the folder of transformers with a pipeline that computes our segmentations. "onnx" and
            "torch-export": a program from pixels to the segmentation of a task.
        out: The new folder. Defaults to exports/ in the run's folder.
        checkpoint: "best", "last", or a step. Defaults to the best with a known score.
        task: The task of a program. Defaults to the task of the run.

    Returns:
        The new folder.

    Raises:
        UsageError: The format is unknown, the folder exists, lies among the run's own files, or
            cannot be written, or the other library cannot compute this network.
        Failed: An exported program computes something else than the network.
    """
    check_format(to, task)
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    model, taxonomy, step = load_model(
        config.model, config.task, folder, checkpoint, torch.device("cpu")
    )
    # A run of an earlier version has its things first; other programs assume the publisher's order.
    ordered = Taxonomy.of(taxonomy.name, taxonomy.categories)
    permute_classes(model, [taxonomy.index(category.id) for category in ordered.categories])
    source = Source(model, config, ordered, task or config.task, step)
    kind = f"{to}-{source.task}" if to in PROGRAMS else to
    out = (out or folder / EXPORTS / f"{kind}-step-{step:09d}").absolute()
    check_apart(out, [folder / name for name in (CHECKPOINTS, EVALUATIONS, PICTURES)])
    if os.path.lexists(out):
        raise UsageError(
            "exists already", where=out, fix="name another folder with --out, or remove it"
        )
    with refusals(out), Console(stderr=True).status(f"exporting step {step}"):
        _write(out, to, source, folder)
    sync(out.parent)
    say(f"step {step} for {to}: {out}")
    return out


def check_format(to: str, task: str | None) -> None:
    """Raise UsageError for an unknown format or task, or a task of a format that has none."""
    if to not in WRITERS:
        raise UsageError(f"unknown format {to!r}", where="--to", fix=f"use {_either(WRITERS)}")
    if task is None:
        return
    if to not in PROGRAMS:
        fix = f"leave it out, or use --to {_either(PROGRAMS)}"
        raise UsageError(
            f"--to {to} writes weights, which serve every task", where="--task", fix=fix
        )
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", where="--task", fix=f"use {_either(TASKS)}")


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"


def _write(out: Path, to: str, source: Source, folder: Path) -> None:
    """Write the new folder of an export; `folder` is the run's."""
    partial = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        report = WRITERS[to](partial, source)
        card.write(partial, to, folder, source, report)
        _sync(partial)
        partial.rename(out)
    except ValueError as error:  # from model/: the other library has no such network
        raise UsageError(str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush a folder and its files to the disk."""
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    sync(folder)
