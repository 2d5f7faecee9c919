"""`evaluate`: the scores of a run's checkpoint, as a table and as a file."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress

from jobs import config as configs
from jobs.cluster.ray_cluster import check_shared
from jobs.cluster.target import HERE, Target
from jobs.config import Config
from jobs.inference import call_on_cluster, inference_device, opened_on_rank
from jobs.outputs import check_file
from jobs.report.figures import Figures, draw_figures
from jobs.report.report import SIGNATURE, write_report
from jobs.results.results import Results, written_results
from jobs.score_tables import show
from jobs.worker import Job
from model.network import Network
from model.weights.classes import permute_classes
from pipeline.data.store import Store
from pipeline.distributed import call_on_all_ranks, rank_and_world
from pipeline.pictures.sheet import sheet, write_png
from pipeline.run.class_match import order_of_classes
from pipeline.run.folder import (
    EVALUATIONS,
    PICTURES,
    RECORD_SUFFIX,
    check_files,
    scores_of,
    scores_path,
    summarize,
)
from pipeline.run.restore import load_model
from pipeline.score.evaluate import evaluate as score
from pipeline.score.record import Record
from shards.errors import UsageError
from shards.files import disk_errors, is_url, read_json, write_json
from shards.format.taxonomy import Taxonomy
from shards.text import say

SHEET_SAMPLES = 8  # the first of the set are drawn


class Scored(NamedTuple):
    """The result of one pass over a set.

    Attributes:
        step: The step of the checkpoint.
        scores: See `pipeline.score.evaluate`.
        picture: The first images with truth and prediction, uint8 [H, W, 3]; None if the set has no
            panoptic truth.
        record: The counters of each image; None on all ranks except the first.
        figures: The pictures of a report; None if none is written.
    """

    step: int
    scores: dict[str, Any]
    picture: np.ndarray | None
    record: Record | None
    figures: Figures | None


@dataclass(frozen=True)
class Pass:
    """What is scored: a checkpoint of a run, on the first images of a set.

    Attributes:
        folder: The folder of the run.
        checkpoint: "best", "last", a step, or None for the best with a known score.
        data: The path or the URL of the set.
        images: The number of images; None for all.
        has_report: Whether the figures of a report are drawn.
        results: What writes the results for servers; None if they are not wanted.
    """

    folder: Path
    checkpoint: str | None
    data: str
    images: int | None
    has_report: bool = False
    results: Results | None = None

    def score(
        self, config: Config, device: torch.device, advance: Callable[[], None] = lambda: None
    ) -> Scored:
        """Score the images, which the ranks of a process group share.

        Args:
            config: The config of the run.
            device: The device of this rank.
            advance: Called after each image.

        Raises:
            UsageError: The checkpoint or the data does not exist, or the classes differ.
        """
        model, taxonomy, step = load_model(
            config.model, config.task, self.folder, self.checkpoint, device
        )
        store = Store(self.data, cache=config.data.cache)
        _order_classes(model, taxonomy, store)
        settings = replace(config.evaluation, images=self.images)
        records: list[Record] = []
        scores = score(
            model,
            store,
            settings,
            device,
            advance=advance,
            seen=self.results.write if self.results else None,
            recorded=records.append,
        )
        picture = None
        if "panoptic" in store.manifest.tasks and rank_and_world()[0] == 0:
            count = min(SHEET_SAMPLES, scores["images"])
            picture = sheet(model, store, settings, device, count)
        record = records[0] if records else None
        figures = None
        if record and self.has_report:
            figures = draw_figures(model, store, settings, device, record, scores)
        return Scored(step, scores, picture, record, figures)


def _score_on_rank(scored: Pass, run: str, config: Config, job: Job) -> Scored:
    """Score the images of this rank, of a process group on a cluster."""
    if results := scored.results:
        call_on_all_ranks(lambda: check_shared([results.folder]))
    with opened_on_rank(run, scored.checkpoint) as folder:
        return replace(scored, folder=folder).score(config, inference_device())


def _score(scored: Pass, config: Config, target: Target, source: str, count: int) -> Scored:
    """Score the images, `count` of them, on this machine or on a cluster."""
    if target.cluster:
        run = source if is_url(source) else str(scored.folder)
        work = partial(_score_on_rank, scored, run)
        return call_on_cluster(work, config, scored.folder, target.cluster, "evaluating")
    with Progress(transient=True) as progress:
        bar = progress.add_task("evaluating", total=count)
        return scored.score(config, inference_device(), lambda: progress.advance(bar))


def evaluate(
    run: str,
    checkpoint: str | None = None,
    data: Path | None = None,
    images: int | None = None,
    target: Target = HERE,
    source: str = "",
    report: Path | None = None,
    results: Path | None = None,
) -> dict[str, Any]:
    """Score a checkpoint, print the scores, and write them and a sheet of pictures.

    Args:
        run: A name under runs/, or a path.
        checkpoint: "best", "last", or a step. Defaults to the best with a known score.
        data: A shard set with the classes of the run. Defaults to the run's val set.
        images: Score only the first images. Defaults to all.
        target: This machine, or a Ray cluster whose workers share the images.
        source: The URL of the run if it is on storage, and `run` is its copy on this machine.
        report: A page to write about the scores.
        results: A folder for the predictions in the formats of servers.

    Returns:
        The scores in percent, with a row per class under `classes`.

    Raises:
        UsageError: The run, the checkpoint, or the data does not exist, or the classes differ.
    """
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    check_files(folder)
    location = str(data.absolute()) if data and target.cluster else str(data or config.data.val)
    store = Store(location, cache=config.data.cache)
    count = min(len(store), images or len(store))
    if report is not None:
        check_file(report, "--report", SIGNATURE.encode(), [store.folder], force=False)
    with written_results(results, store, [folder]) as writer:
        scored = Pass(folder, checkpoint, location, images, report is not None, writer)
        step, scores, picture, record, figures = _score(scored, config, target, source, count)
    if config.optimizer.ema is not None:
        scores["averaged"] = True
    own = data is None and count == min(len(store), config.evaluation.images or len(store))
    with disk_errors(folder):
        path = _write_scores(folder, store, {"step": step, **scores}, own=own)
        if record is not None:
            record.save(path.with_suffix(RECORD_SUFFIX))
        if picture is not None:
            _write_picture(folder, scores_path(folder, step).stem if own else path.stem, picture)
    weights = " (averaged weights)" if "averaged" in scores else ""
    title = f"{folder.name}, step {step}{weights}, {count} images of {store.location}"
    show(scores, title, config.evaluation, store, path)
    if report is not None and figures is not None:
        write_report(report, title, scores, store.manifest.taxonomy, figures, folder)
    summarize(folder, config.task)
    return scores


def _write_picture(folder: Path, stem: str, picture: np.ndarray) -> None:
    """Write the sheet of pictures of a run, and say where it is."""
    png = folder / PICTURES / f"{stem}.png"
    write_png(png, picture)
    say(f"pictures: {png}")


def _write_scores(folder: Path, store: Store, record: dict[str, Any], *, own: bool) -> Path:
    """Write the scores of a step and return the path.

    The scores of a step that the run has recorded are never replaced by others.

    Args:
        folder: The run folder.
        store: The scored set.
        record: The step, the scores, and what they belong to.
        own: Whether the images are those that the run itself scores.
    """
    step = record["step"]
    path = scores_path(folder, step)
    if not own or scores_of(folder, step) not in ({}, record):
        name, end = Path(store.location).name, f"{record['images']}-step-{step:09d}.json"
        path = folder / EVALUATIONS / f"{name}-{end}"
        if path.exists() and _data_of(path) != record["data"]:  # another set of this name
            path = path.with_name(f"{name}-{record['data'][:12]}-{end}")
        record = {"location": store.location, **record}
    write_json(path, record)
    return path


def _data_of(path: Path) -> str | None:
    """Return the fingerprint of the set that a file of scores belongs to; None if it has none."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return read_json(path)["data"]
    return None


def _order_classes(model: Network, trained: Taxonomy, store: Store) -> None:
    """Put the network's classes in the order of a shard set.

    Raises:
        UsageError: The shard set has other classes than the network.
    """
    found = store.manifest.taxonomy
    rows = order_of_classes(trained, found)
    if rows is None:
        raise UsageError(
            f"has the label space {found.name} ({len(found)} classes), the run has "
            f"{trained.name} ({len(trained)}): {found.difference(trained)}",
            where=store.location,
            fix="evaluate on data with the run's classes",
        )
    if rows != list(range(len(rows))):
        say(f"{store.location} has the run's classes in another order; they are matched by name")
        permute_classes(model, rows)
