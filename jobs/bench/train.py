"""What a run adds to its training steps: guards, records, checkpoints, and DeepSpeed itself.

One worker trains the preset `tiny` on painted shapes. Three loops take turns with the same batches:
that of a run; the bare steps of the same engine; and the same steps under plain DDP with AdamW,
without DeepSpeed. The parts are timed inside of the run's loop. A step of `tiny` is short, so that
the shares of a real network are smaller.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from jobs import config as configs
from jobs.bench import alternate, row
from jobs.bench.training import join_a_group_of_one
from jobs.demo.shapes import generate
from model.mask2former import Mask2Former
from pipeline.data.batch import Batch
from pipeline.distributed import rank_device
from pipeline.run import stop
from pipeline.run.start_parts import StartParts
from pipeline.step.optimizer import parameter_groups
from pipeline.step.step import PlainNetwork, TrainingStep
from pipeline.train import Worker
from shards.build.build import build

IMAGES, SIDE, STEPS = 32, 96, 40
CADENCE_S = 600  # between two checkpoints, for the share of their cost
SETTINGS = ("zero.stage=0", "batch.size=4", "batch.micro=4", "data.loader_workers=0",
            "scaling.workers=1", "tracking.wandb.mode=offline",
            "evaluation.every_steps=1000000", "trainer.steps=1000000")  # fmt: skip


class PlainDDP(PlainNetwork):
    """The network under DDP, updated by AdamW."""

    def __init__(self, model: nn.Module, settings: configs.Config, device: torch.device):
        super().__init__(DistributedDataParallel(model.to(device)), device)
        groups = parameter_groups(model, settings.optimizer)
        self._adamw = AdamW(groups, fused=device.type == "cuda")
        self._clip = settings.optimizer.clip

    def step(self) -> None:
        """Clip and update, and read the norm, as a run does."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._adamw.step()
        self._adamw.zero_grad()
        float(norm)


def rows() -> list[dict]:
    """Return the rows of the benchmark."""
    with tempfile.TemporaryDirectory() as name:
        settings = _settings(Path(name))
        folder = Path(name) / "run"
        folder.mkdir()
        join_a_group_of_one(rank_device())
        worker = Worker(settings, folder, "bench", faults=None, parts=StartParts(time.time()))
        return _measure(worker, settings)


def _settings(folder: Path) -> configs.Config:
    """Return the settings of a run on shapes that are painted into a folder."""
    generate(folder / "raw", IMAGES, IMAGES, SIDE, 0)
    build("coco", folder / "raw", folder / "shards", jobs=1, report=lambda _: None)
    sets = [f"data.{part}={folder / 'shards' / part}" for part in ("train", "val")]
    return configs.load("tiny", [*sets, *SETTINGS])


def _measure(worker: Worker, settings: configs.Config) -> list[dict]:
    worker.progress = worker.journal.resume(worker.engine)
    batches = list(_first(worker, STEPS))
    seconds: dict[str, list[float]] = defaultdict(list)
    for part, owner, method in (
        ("guards", worker.guard, "updated"),
        ("guards", worker.journal, "damaged"),
        ("tracking", worker, "_log"),
        ("checkpoint", worker, "_save"),
    ):
        setattr(owner, method, _timed(getattr(owner, method), seconds[part], worker.device))
    ddp = PlainDDP(Mask2Former(settings.model, len(worker.data.taxonomy)), settings, worker.device)
    plain = TrainingStep(
        ddp,
        settings.criterion,
        queries=settings.model.queries,
        seed=settings.seed,
        split=worker.split,
        device=worker.device,
    )

    def of_run() -> None:
        vars(worker)["_batches"] = lambda: _then_stop(batches)
        try:
            worker._steps()
        except stop.Stopped:
            worker._save()

    def bare() -> None:
        for batch in batches:
            worker.train_step.forward_backward(worker.train_step.receive(iter([batch])))
            worker.engine.step(1.0)

    def under_ddp() -> None:
        for batch in batches:
            plain.forward_backward(plain.receive(iter([batch])))
            ddp.step()

    taken = alternate({"run": of_run, "bare": bare, "ddp": under_ddp})
    return _rows(taken, seconds)


def _first(worker: Worker, count: int) -> Iterator[Batch]:
    batches = worker._batches()
    for _ in range(count):
        yield next(batches)


def _then_stop(batches: list[Batch]) -> Iterator[Batch]:
    yield from batches
    raise stop.Stopped


def _timed(function: Callable, seconds: list[float], device: torch.device) -> Callable:
    """Return the function, which appends the time of each call; the GPU has no work before."""

    def timed(*args: Any, **named: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = function(*args, **named)
        seconds.append(time.perf_counter() - start)
        return result

    return timed


def _rows(taken: dict[str, float], seconds: dict[str, list[float]]) -> list[dict]:
    turns = len(seconds["checkpoint"])
    steps = taken["bare"] / STEPS
    shares = {
        part: 100 * sum(seconds[part]) / (turns * STEPS) / steps for part in ("guards", "tracking")
    }
    stall = statistics.median(seconds["checkpoint"])
    step = {name: 1000 * value / STEPS for name, value in taken.items()}
    return [
        row("train.step.run", "ms", step["run"], better="lower", peer=step["bare"],
            peer_name="bare steps of the same engine"),
        row("train.step.engine", "ms", step["bare"], better="lower", peer=step["ddp"],
            peer_name="DDP and AdamW without DeepSpeed"),
        row("train.guards", "% of a step", shares["guards"], better="lower", target="< 1"),
        row("train.tracking", "% of a step", shares["tracking"], better="lower", target="< 1"),
        row("train.checkpoint", "% of the time between two", 100 * stall / CADENCE_S,
            better="lower", target="< 2"),
        row("train.checkpoint.stall", "ms", 1000 * stall, better="lower"),
    ]  # fmt: skip
