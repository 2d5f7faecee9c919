"""`export`: the weights of a run in the formats of other libraries, with a model card."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from jobs import card
from jobs import config as configs
from jobs.config import Config
from jobs.outputs import check_apart, refusals
from model.mask2former import PIXEL_MEAN, PIXEL_STD, Mask2Former
from model.weights.classes import CLASS_NAMES, encode_names, permute_classes
from model.weights.export import save_transformers, to_detectron2
from pipeline.run.folder import CHECKPOINTS, EVALUATIONS, PICTURES
from pipeline.run.restore import load_model
from shards.errors import UsageError
from shards.files import sync, whole_file, write_json
from shards.format.taxonomy import Taxonomy
from shards.text import say

EXPORTS = "exports"
OFFICIAL = "model.pkl"


def export(run: str, to: str, out: Path | None = None, checkpoint: str | None = None) -> Path:
    """Write the weights of a checkpoint, with a model card, to a new folder.

    The folder is written under a temporary name and renamed at the end, so that it is complete if
    it exists.

    Args:
        run: A name under runs/, or a path.
        to: "transformers": a folder for `Mask2FormerForUniversalSegmentation.from_pretrained`, with
            the image processor. "detectron2": a pickle of arrays under the official names.
        out: The new folder. Defaults to exports/ in the run's folder.
        checkpoint: "best", "last", or a step. Defaults to the best with a known score.

    Returns:
        The new folder.

    Raises:
        UsageError: The format is unknown, the folder exists, lies among the run's own files, or
            cannot be written, or the other library cannot compute this network.
    """
    if to not in WRITERS:
        raise UsageError(f"unknown format {to!r}", where="--to", fix=f"use {' or '.join(WRITERS)}")
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    model, taxonomy, step = load_model(
        config.model, config.task, folder, checkpoint, torch.device("cpu")
    )
    # A run of an earlier version has its things first; other programs assume the publisher's order.
    ordered = Taxonomy.of(taxonomy.name, taxonomy.categories)
    permute_classes(model, [taxonomy.index(category.id) for category in ordered.categories])
    out = (out or folder / EXPORTS / f"{to}-step-{step:09d}").absolute()
    check_apart(out, [folder / name for name in (CHECKPOINTS, EVALUATIONS, PICTURES)])
    if os.path.lexists(out):
        raise UsageError(
            "exists already", where=out, fix="name another folder with --out, or remove it"
        )
    partial = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    with refusals(out), Console(stderr=True).status(f"exporting step {step}"):
        try:
            partial.mkdir(parents=True)
            WRITERS[to](partial, model, config, ordered)
            card.write(partial, to, folder, config, ordered, step)
            _sync(partial)
            partial.rename(out)
        except ValueError as error:  # from model/: the other library has no such network
            raise UsageError(str(error)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    sync(out.parent)
    say(f"step {step} for {to}: {out}")
    return out


def _transformers(folder: Path, model: Mask2Former, config: Config, taxonomy: Taxonomy) -> None:
    logging.set_verbosity_error()  # transformers warns about every backbone except Swin
    logging.disable_progress_bar()
    save_transformers(folder, model, config.model, config.criterion, list(taxonomy.names))
    write_json(folder / "preprocessor_config.json", {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.evaluation.short, "longest_edge": config.evaluation.long},
        "size_divisor": config.evaluation.size_divisor,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [mean / 255 for mean in PIXEL_MEAN],
        "image_std": [std / 255 for std in PIXEL_STD],
        "ignore_index": 255,
        "do_reduce_labels": False,
        "num_labels": len(taxonomy),
    })  # fmt: skip


def _detectron2(folder: Path, model: Mask2Former, config: Config, taxonomy: Taxonomy) -> None:
    tensors = to_detectron2(model, config.model, config.criterion)
    tensors[CLASS_NAMES] = encode_names(taxonomy.names)
    with whole_file(folder / OFFICIAL) as file:
        # detectron2 takes the names as they are only if the file has an "__author__".
        pickle.dump({"model": tensors, "__author__": "Mask2Former at scale"}, file, protocol=4)


WRITERS: dict[str, Callable[[Path, Mask2Former, Config, Taxonomy], Any]] = {
    "transformers": _transformers,
    "detectron2": _detectron2,
}


def _sync(folder: Path) -> None:
    """Flush a folder and its files to the disk."""
    for path in folder.iterdir():
        if path.is_file():
            sync(path)
    sync(folder)
