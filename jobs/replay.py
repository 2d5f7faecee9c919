"""`replay`: a step of a run as pictures, exactly what the net saw."""

from itertools import chain
from pathlib import Path

import numpy as np
from rich.progress import track

from jobs import config as configs
from pipeline.data.split import BatchSplit
from pipeline.data.stream import train_sets
from pipeline.pictures.render import side_by_side
from pipeline.pictures.replay import batches_of_step, pictures
from pipeline.pictures.sheet import write_png
from pipeline.run.eventlog import read_kind
from pipeline.run.events import Start
from pipeline.run.folder import PICTURES
from shards.errors import UsageError
from shards.format.taxonomy import Taxonomy

IN_A_ROW = 4  # samples


def replay(run: str, step: int, rank: int | None = None) -> Path:
    """Draw the samples of a step again, all or one rank's; returns the sheet in `pictures/`.

    Prints rank, position, epoch, key and size of each. Raises UsageError for a step or a rank that
    the run does not have, and if its shards have changed.
    """
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    if not 1 <= step <= config.trainer.steps:
        raise UsageError(f"--step {step}: the run has steps 1 to {config.trainer.steps}")
    worlds = [start.world_size for start in read_kind(folder, Start) if start.step < step]
    world = worlds[-1] if worlds else config.scaling.workers
    if rank is not None and not 0 <= rank < world:
        raise UsageError(f"--rank {rank}: step {step} has ranks 0 to {world - 1}")
    taxonomy = _unchanged_taxonomy(folder, config)
    ranks = range(world) if rank is None else [rank]
    found = ((r, batch) for r in ranks for batch in batches_of_step(config, step, world, r))
    split = BatchSplit(config.batch.size, config.batch.micro, world)
    count = len(ranks) * split.micro_steps
    shown: list[list[np.ndarray]] = []
    lines = []
    for r, batch in track(found, f"drawing step {step}", count, transient=True):
        for b, key in enumerate(batch.keys):
            shown.append(pictures(batch, b, taxonomy))
            height, width = batch.sizes[b].tolist()
            lines.append(
                f"{r:4} {batch.positions[b]:9} {batch.epochs[b]:5}  {key}  {width}x{height}"
            )
    print("rank  position epoch  key  size without padding", *lines, sep="\n")
    path = (
        folder / PICTURES / f"replay-step-{step:09d}{'' if rank is None else f'-rank-{rank}'}.png"
    )
    write_png(path, _sheet(shown))
    print(f"pictures: {path}")
    return path


def _unchanged_taxonomy(folder: Path, config: configs.Config) -> Taxonomy:
    """The label space of the run's training sets, which must be those that it was started with."""
    stores = train_sets(config.data)
    started = configs.load_environment(folder)["data"]["train"]
    if [store.manifest.fingerprint for store in stores] != np.atleast_1d(started).tolist():
        raise UsageError(
            f"data.train={config.data.train}: the shards are not those of the run; "
            "build them again as they were"
        )
    return stores[0].manifest.taxonomy


def _sheet(shown: list[list[np.ndarray]]) -> np.ndarray:
    """Picture and truth of every sample, row by row; the last row is filled up with white."""
    in_a_row = min(IN_A_ROW, len(shown))
    blank = [np.full_like(picture, 255) for picture in shown[-1]]
    full = shown + [blank] * (-len(shown) % in_a_row)
    lines = [
        list(chain.from_iterable(full[n : n + in_a_row])) for n in range(0, len(full), in_a_row)
    ]
    return side_by_side(["image", "truth"] * in_a_row, *lines)
