"""The `replay` command: draw the samples that the network was trained on at a step."""

from itertools import chain
from pathlib import Path

import numpy as np
from rich.progress import track

from jobs import config as configs
from pipeline.data.batch import Batch
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
    """Draw the samples of a step again, and print the rank, position, epoch, key, and size of each.

    Args:
        run: Name or path of the run.
        step: The optimizer step, from 1.
        rank: Draw only the samples of this rank.

    Returns:
        The path of the sheet, in `pictures/`.

    Raises:
        UsageError: The run has no such step or rank, or its shards have changed.
    """
    folder = configs.run_folder(run)
    config = configs.load_run(folder)
    if not 1 <= step <= config.trainer.steps:
        raise UsageError(f"the run has steps 1 to {config.trainer.steps}", where=f"--step {step}")
    worlds = [start.world_size for start in read_kind(folder, Start) if start.step < step]
    world = worlds[-1] if worlds else config.scaling.workers
    assert world is not None, "resolved by `configs.load`"
    if rank is not None and not 0 <= rank < world:
        raise UsageError(f"step {step} has ranks 0 to {world - 1}", where=f"--rank {rank}")
    taxonomy = _unchanged_taxonomy(folder, config)
    ranks = range(world) if rank is None else [rank]
    batches = ((r, batch) for r in ranks for batch in batches_of_step(config, step, world, r))
    split = BatchSplit(config.batch.size, config.batch.micro, world)
    count = len(ranks) * split.micro_steps
    drawn: list[list[np.ndarray]] = []
    lines = []
    for r, batch in track(batches, f"drawing step {step}", count, transient=True):
        for b in range(len(batch.keys)):
            drawn.append(pictures(batch, b, taxonomy))
            lines.append(_line(r, batch, b))
    print("rank  position epoch  key  size without padding", *lines, sep="\n")
    suffix = "" if rank is None else f"-rank-{rank}"
    path = folder / PICTURES / f"replay-step-{step:09d}{suffix}.png"
    write_png(path, _sheet(drawn))
    print(f"pictures: {path}")
    return path


def _line(rank: int, batch: Batch, b: int) -> str:
    height, width = batch.sizes[b].tolist()
    position, epoch = batch.positions[b], batch.epochs[b]
    return f"{rank:4} {position:9} {epoch:5}  {batch.keys[b]}  {width}x{height}"


def _unchanged_taxonomy(folder: Path, config: configs.Config) -> Taxonomy:
    """Return the label space of the training sets, which must be those of the run's start."""
    stores = train_sets(config.data)
    started = configs.load_environment(folder)["data"]["train"]
    if [store.manifest.fingerprint for store in stores] != started:
        raise UsageError(
            "the shards are not those of the run",
            where=f"data.train={config.data.train}",
            fix="build them again as they were",
        )
    return stores[0].manifest.taxonomy


def _sheet(drawn: list[list[np.ndarray]]) -> np.ndarray:
    """Arrange the picture and the truth of every sample in rows; fill the last row with white."""
    in_a_row = min(IN_A_ROW, len(drawn))
    blank = [np.full_like(picture, 255) for picture in drawn[-1]]
    full = drawn + [blank] * (-len(drawn) % in_a_row)
    lines = [
        list(chain.from_iterable(full[n : n + in_a_row])) for n in range(0, len(full), in_a_row)
    ]
    return side_by_side(["image", "truth"] * in_a_row, *lines)
