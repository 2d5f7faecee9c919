"""Reports about bad steps in `diagnoses/`: which image, which tensor, and all norms."""

import math
import platform
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline.data.batch import Batch
from pipeline.distributed import all_gather, rank_and_world
from pipeline.run.guard_events import Diagnosed
from pipeline.run.journal import Journal
from pipeline.step.diagnose import FAR, Norm, Replay, replay
from pipeline.step.engine import Engine
from pipeline.step.step import GlobalBatch, TrainingStep
from shards.files import write_json

DIAGNOSES = "diagnoses"
MAX_REPORTS = 5  # of one start; a report takes the time of several steps
MAX_PICTURES = 8

Draw = Callable[[Batch, int], list[np.ndarray]]
WriteSheet = Callable[[Path, list[list[np.ndarray]]], None]


class Diagnoses:
    """Replays bad steps on all ranks, and writes a report and a sheet of pictures for each.

    Args:
        folder: The run folder.
        journal: The records of the run.
        engine: Holds the network.
        step: The training step.
        draw: Draws an image of a batch, and its truth.
        write_sheet: Writes the pictures of several images as one file.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        engine: Engine,
        step: TrainingStep,
        draw: Draw,
        write_sheet: WriteSheet,
    ):
        self._folder, self._journal = folder, journal
        self._engine, self._step = engine, step
        self._draw, self._write_sheet = draw, write_sheet
        self._left = MAX_REPORTS

    def find(self, step: int, batch: GlobalBatch, facts: dict[str, Any]) -> Diagnosed | None:
        """Replay a step, and record what is wrong. All ranks must call it.

        Args:
            step: Number of the step.
            batch: This rank's part of its batch.
            facts: What is known about the step, for the report.

        Returns:
            The event; None if this start has written all its reports.
        """
        if not self._left:
            return None
        self._left -= 1
        own = replay(self._step, self._engine.module, batch, why_not=self._why_not())
        ranks = all_gather(own)
        worker, first = first_wrong(ranks)
        blamed = wrong_samples(ranks)
        name = f"{DIAGNOSES}/step-{step:09d}-a{self._journal.attempt:02d}.json"
        keys = [sample["key"] for sample in blamed]
        event = Diagnosed(step=step, samples=keys, first=first, worker=worker, file=name)
        hosts = all_gather(platform.node())
        drawn = all_gather(self._pictures(batch, {s["position"] for s in blamed[:MAX_PICTURES]}))
        if rank_and_world()[0] == 0:
            errors = {str(rank): r.error for rank, r in enumerate(ranks) if r.error}
            report = {
                **{"step": step, **facts, "first": first, "worker": worker, "host": hosts[worker]},
                **{"samples": blamed, "not_replayed": errors},
                "all_samples": [{"worker": rank, **sample} for rank, found in enumerate(ranks)
                                for sample in found.samples],
                "norms": table(ranks[worker].norms),
            }  # fmt: skip
            self._write(self._folder / name, report, [p for part in drawn for p in part])
        self._journal.event(event)
        return event

    def _why_not(self) -> str:
        """Return why a rank cannot call the network alone; empty if it can."""
        if self._engine.stage == 3:
            return "with zero.stage=3, no worker has the whole network"
        if any(
            type(module).__name__ == "SyncBatchNorm" for module in self._engine.module.modules()
        ):
            return "with model.norm=sync_batch, a worker needs the images of the others"
        return ""

    def _pictures(self, batch: GlobalBatch, positions: set[int]) -> list[list[np.ndarray]]:
        """Return the pictures of this rank's images at some positions."""
        return [
            self._draw(micro_batch.to(torch.device("cpu")), b)
            for micro_batch in batch.batches
            for b, position in enumerate(micro_batch.positions)
            if position in positions
        ]

    def _write(self, path: Path, report: dict[str, Any], drawn: list[list[np.ndarray]]) -> None:
        try:
            write_json(path, as_json(report))
            if drawn:
                self._write_sheet(path.with_suffix(".png"), drawn)
        except OSError as error:  # training continues without the report
            warnings.warn(f"{path.name} cannot be written: {error}", stacklevel=2)


def wrong_samples(ranks: Sequence[Replay]) -> list[dict[str, Any]]:
    """Return the images whose numbers alone are not finite; otherwise those of the greatest loss.

    The latter have at least half of the greatest loss, if that is far from the usual one.
    """
    replayed = [sample for found in ranks for sample in found.samples if "loss" in sample]
    bad = [s for s in replayed if not math.isfinite(s["loss"] + s["grad_norm"])]
    if bad or len(replayed) < 2:
        return bad
    greatest = max(sample["loss"] for sample in replayed)
    usual = median(sample["loss"] for sample in replayed)
    high = [s for s in replayed if s["loss"] >= greatest / 2]
    is_far = greatest > 2 * usual and all(found.first_not_finite() is None for found in ranks)
    return sorted(high, key=lambda sample: -sample["loss"]) if is_far else []


def first_wrong(ranks: Sequence[Replay]) -> tuple[int, str]:
    """Return the rank and the name of the first tensor that is not finite, or far from usual.

    Ranks compute at the same time, so that the first tensor is the one that the fewest tensors of
    its rank precede. The name is empty if no tensor is wrong.
    """
    found = [(rank.norms.index(norm), number, str(norm)) for number, rank in enumerate(ranks)
             if (norm := rank.first_not_finite())]  # fmt: skip
    if found:
        _, worker, name = min(found)
        return worker, name
    worst = max(
        ((sample["loss"], number, b) for number, rank in enumerate(ranks)
         for b, sample in enumerate(rank.samples) if "loss" in sample), default=None,
    )  # fmt: skip
    if worst is None:
        return 0, ""
    _, worker, b = worst
    others = [norms for n, rank in enumerate(ranks) for i, norms in enumerate(rank.outputs)
              if (n, i) != (worker, b)]  # fmt: skip
    for index, norm in enumerate(ranks[worker].outputs[b]):
        values = [norms[index].value for norms in others if len(norms) > index]
        if values and norm.value > FAR * median(values):
            return worker, str(norm)
    return worker, ""


def table(norms: Sequence[Norm]) -> dict[str, dict[str, float]]:
    """Return the norms by kind and name; of several with one name the greatest."""
    rows: dict[str, dict[str, float]] = {}
    for kind, name, value in norms:
        row = rows.setdefault(kind, {})
        known = row.get(name, value)
        row[name] = value if value > known or not math.isfinite(value) else known
    return rows


def as_json(value: Any) -> Any:
    """Return plain data in which numbers that are not finite are texts, because JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: as_json(entry) for name, entry in value.items()}
    return [as_json(entry) for entry in value] if isinstance(value, list) else value
