"""The `replay` command: draw the samples that the network was trained on at a step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from jobs import config as configs
from pipeline.data.batch import Batch
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import train_sets
from pipeline.pictures.replay import batches_of_step, pictures, write_sheet
from pipeline.run import eventlog
from pipeline.run.events import Checkpoint, Event, Start
from pipeline.run.folder import PICTURES
from shards.errors import UsageError
from shards.text import printable, say


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
    history = eventlog.read(folder)
    worlds = [e.world_size for e in history if isinstance(e, Start) and e.step < step]
    world = worlds[-1] if worlds else config.scaling.workers
    assert world is not None, "resolved by `configs.load`"
    if rank is not None and not 0 <= rank < world:
        raise UsageError(f"step {step} has ranks 0 to {world - 1}", where=f"--rank {rank}")
    stores = _unchanged_sets(folder, config)
    taxonomy = stores[0].manifest.taxonomy
    ranks = range(world) if rank is None else [rank]
    splits = [BatchSplit(config.batch.size, config.batch.micro, world, r) for r in ranks]
    position = _position(history, step, config.batch.size)
    batches = (
        (split.rank, batch)
        for split in splits
        for batch in batches_of_step(config.data, stores, config.task, config.seed, position, split)
    )
    count = sum(len(split.sizes) for split in splits)
    drawn: list[list[np.ndarray]] = []
    lines = []
    for r, batch in track(batches, f"drawing step {step}", count, transient=True):
        for b in range(len(batch.keys)):
            drawn.append(pictures(batch, b, taxonomy))
            lines.append(_line(r, batch, b))
    print("rank  position epoch  key  size without padding", *lines, sep="\n")
    suffix = "" if rank is None else f"-rank-{rank}"
    path = folder / PICTURES / f"replay-step-{step:09d}{suffix}.png"
    write_sheet(path, drawn)
    say(f"pictures: {path}")
    return path


def _position(history: Sequence[Event], step: int, images: int) -> int:
    """Return the position of the first sample of a step: a rewind leaves out positions.

    Args:
        history: The events of the run.
        step: The optimizer step, from 1.
        images: Number of images of a step.
    """
    known = [e for e in history if isinstance(e, Start | Checkpoint) and e.step < step]
    before, position = (known[-1].step, known[-1].position) if known else (0, 0)
    return position + (step - 1 - before) * images


def _line(rank: int, batch: Batch, b: int) -> str:
    height, width = batch.sizes[b].tolist()
    position, epoch = batch.positions[b], batch.epochs[b]
    return f"{rank:4} {position:9} {epoch:5}  {printable(batch.keys[b])}  {width}x{height}"


def _unchanged_sets(folder: Path, config: configs.Config) -> list[Store]:
    """Return the training sets, which must be those of the run's start."""
    stores = train_sets(config.data)
    started = configs.load_environment(folder)["data"]["train"]
    if [store.manifest.fingerprint for store in stores] != started:
        raise UsageError(
            "the shards are not those of the run",
            where=f"data.train={config.data.train}",
            fix="build them again as they were",
        )
    return stores
