"""`evaluate`: the scores of a run's checkpoint, as a table and as a file."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jobs import config as configs
from pipeline.data.store import Store
from pipeline.pictures.sheet import sheet, write_png
from pipeline.run.folder import EVALUATIONS, PICTURES, load_model, scores_path, summarize
from pipeline.score.evaluate import HEADLINE
from pipeline.score.evaluate import evaluate as score
from shards.errors import UsageError
from shards.files import write_json

PICTURED = 8  # first images of the val set


def evaluate(
    run: str,
    checkpoint: str | None = None,
    data: Path | None = None,
    images: int | None = None,
) -> dict[str, Any]:
    """Score a run on its val set, or on `data` of the same classes; returns the scores.

    Raises UsageError if run, checkpoint or data do not exist, or if the classes differ.
    """
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, taxonomy, step = load_model(config, folder, checkpoint, device)
    store = Store(data or config.data.val, cache=config.data.cache)
    if store.manifest.taxonomy != taxonomy:
        theirs, ours = store.manifest.taxonomy, taxonomy
        raise UsageError(
            f"{store.location} has the label space {theirs.name} ({len(theirs.categories)} "
            f"classes), the run has {ours.name} ({len(ours.categories)}); "
            "evaluate on data of its own classes"
        )
    settings = config.evaluation
    settings.images = images
    count = min(len(store), images or len(store))
    bar = iter(track(range(count), description=f"evaluating step {step}", transient=True))
    scores = score(model, store, settings, device, advance=lambda: next(bar))
    next(bar, None)
    if data is None and images is None:
        path = scores_path(folder, step)
        write_json(path, {"step": step, **scores})
    else:
        path = folder / EVALUATIONS / f"{Path(store.location).name}-{count}-step-{step:09d}.json"
        write_json(path, {"step": step, "data": store.location, "images": count, **scores})
    if "panoptic" in store.manifest.tasks:
        picture = folder / PICTURES / f"{path.stem}.png"
        write_png(picture, sheet(model, store, settings, device, min(PICTURED, count)))
        print(f"pictures: {picture}")
    show(scores, f"{folder.name}, step {step}, {count} images of {store.location}")
    print(f"all classes: {path}")
    summarize(folder, config.task)
    return scores


def show(scores: dict[str, Any], title: str) -> None:
    """Print the headline scores."""
    known = [name for name in HEADLINE if scores.get(name) is not None]
    table = Table(title=title, title_justify="left")
    for name in known:
        table.add_column(name, justify="right")
    table.add_row(*(f"{scores[name]:.2f}" for name in known))
    Console().print(table)
