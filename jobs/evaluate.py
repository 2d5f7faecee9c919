"""`evaluate`: the scores of a run's checkpoint, as a table and as a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jobs import config as configs
from model.mask2former import Mask2Former
from model.weights.classes import permute_classes
from pipeline.data.store import Store
from pipeline.pictures.sheet import sheet, write_png
from pipeline.run.class_match import order_of_classes
from pipeline.run.folder import EVALUATIONS, PICTURES, check_files, scores_path, summarize
from pipeline.run.restore import load_model
from pipeline.score.evaluate import evaluate as score
from pipeline.score.headline import HEADLINE
from shards.errors import UsageError
from shards.files import write_json
from shards.format.taxonomy import Taxonomy

SHEET_SAMPLES = 8  # the first of the set are drawn


def evaluate(
    run: str,
    checkpoint: str | None = None,
    data: Path | None = None,
    images: int | None = None,
) -> dict[str, Any]:
    """Score a checkpoint, print the scores, and write them and a sheet of pictures.

    Args:
        run: A name under runs/, or a path.
        checkpoint: "best", "last", or a step. Defaults to the best with a known score.
        data: A shard set with the classes of the run. Defaults to the run's val set.
        images: Score only the first images. Defaults to all.

    Returns:
        The scores in percent, with a row per class under `classes`.

    Raises:
        UsageError: The run, the checkpoint, or the data does not exist, or the classes differ.
    """
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    check_files(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, taxonomy, step = load_model(config.model, config.task, folder, checkpoint, device)
    store = Store(data or config.data.val, cache=config.data.cache)
    _order_classes(model, taxonomy, store)
    settings = replace(config.evaluation, images=images)
    count = min(len(store), images or len(store))
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"evaluating step {step}", total=count)
        scores = score(model, store, settings, device, advance=lambda: progress.advance(bar))
    assert scores is not None, "rank 0 has the scores, and this process is the only one"
    if data is None and images is None:
        path = scores_path(folder, step)
        write_json(path, {"step": step, **scores})
    else:  # must not be taken for the score of the step
        path = folder / EVALUATIONS / f"{Path(store.location).name}-{count}-step-{step:09d}.json"
        write_json(path, {"step": step, "data": store.location, "images": count, **scores})
    if "panoptic" in store.manifest.tasks:
        picture = folder / PICTURES / f"{path.stem}.png"
        write_png(picture, sheet(model, store, settings, device, min(SHEET_SAMPLES, count)))
        print(f"pictures: {picture}")
    print_scores(scores, f"{folder.name}, step {step}, {count} images of {store.location}")
    print(f"scores of all classes: {path}")
    summarize(folder, config.task)
    return scores


def print_scores(scores: dict[str, Any], title: str) -> None:
    """Print a table of the headline scores."""
    known = [name for name in HEADLINE if scores.get(name) is not None]
    table = Table(title=title, title_justify="left")
    for name in known:
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name]:.2f}" for name in known))
    Console().print(table)


def _order_classes(model: Mask2Former, trained: Taxonomy, store: Store) -> None:
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
        print(f"{store.location} has the run's classes in another order; they are matched by name")
        permute_classes(model, rows)
