"""The training loop of one worker. Knows torch.distributed, not who started the processes."""

import dataclasses
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.criterion import Criterion, Normalizers, normalizers
from model.mask2former import Mask2Former, normalize
from model.targets import Draw
from model.weights.load import load
from pipeline.data.batch import BYTES_PER_PIXEL, Batch
from pipeline.data.keyed import keyed_seed, keyed_uniform
from pipeline.data.loader import loader
from pipeline.data.order import differences
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import order_of, train_sets, train_stream
from pipeline.distributed import everywhere, gather, raise_together, together
from pipeline.run import checkpoint
from pipeline.run.folder import (
    CHECKPOINTS,
    best_step,
    initial_weights,
    rewind,
    scores_path,
    summarize,
)
from pipeline.run.quarantine import QUARANTINE, Quarantine
from pipeline.run.track import EVENTS, Tracker
from pipeline.score.evaluate import HEADLINE, evaluate
from pipeline.settings import RunSettings
from pipeline.step.engine import Engine, Step
from pipeline.step.meter import Meter
from pipeline.step.optimizer import parameter_groups
from pipeline.step.schedule import lr_multiplier
from shards.errors import UsageError
from shards.files import write_json
from shards.jsonl import rows

MAX_SKIPPED_IN_A_ROW = 20
PACKAGES = ("torch", "deepspeed", "ray", "webdataset", "transformers", "numpy")


def train(settings: RunSettings, folder: Path, launch: str = "") -> None:
    """Train until `trainer.steps`, from the newest whole checkpoint in `folder` or from scratch.

    Call it on every rank of an initialized process group. `launch` names the start by a user, so
    that its restarts can be told from it in events.jsonl.
    """
    Worker(settings, folder, launch).run()


def draws(seed: int, batch: Batch) -> Draw:
    """Uniform numbers keyed by (seed, epoch, sample key, purpose): the same on any rank."""
    device = batch.images.device

    def draw(image: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        key = seed, batch.epochs[image], batch.keys[image], purpose
        return keyed_uniform(shape, *key, device=device)

    return draw


class Worker:
    """One rank: its share of the data, its engine, and on rank 0 the run's records."""

    def __init__(self, settings: RunSettings, folder: Path, launch: str):
        self.settings, self.folder, self.launch = settings, folder, launch
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.split = BatchSplit(settings.batch.size, settings.batch.micro, self.world, self.rank)
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        self.stores = together(lambda: train_sets(settings.data))
        self.order = order_of(self.stores, settings.data, settings.seed).identity()
        self.taxonomy = self.stores[0].manifest.taxonomy
        self.val = together(lambda: Store(settings.data.val, cache=settings.data.cache))
        self.attempt = everywhere(self._count_starts) + 1
        self.step = self.position = self.updates = 0
        self.tracker = Tracker(
            folder,
            settings.tracking.wandb,
            active=self.rank == 0,
            name=settings.name,
            run_id=f"{settings.name}-{keyed_seed(folder) % 16**8:08x}",
            config=dataclasses.asdict(settings) | {"world_size": self.world},
        )
        self.found = self._announce()
        torch.manual_seed(settings.seed)
        model = Mask2Former(settings.model, len(self.taxonomy))
        if self.found is None and settings.model.init_from != "none":
            self._initialize(model)
        self.engine = Engine(
            model.to(self.device),
            parameter_groups(model, settings.optimizer),
            zero=settings.zero,
            clip=settings.optimizer.clip,
            global_batch=settings.batch.size,
            micro_batch=settings.batch.micro,
            device=self.device,
        )
        self.criterion = Criterion(settings.criterion)
        self.multiplier = lr_multiplier(settings.schedule, settings.trainer.steps)
        self.meter = Meter(settings.batch.size)

    def _initialize(self, model: Mask2Former) -> None:
        """Give a fresh run its start values, and say which they are and which they are not."""
        path = initial_weights(self.settings.model.init_from, self.settings.task)
        loaded = load(model, path)
        self.tracker.event(
            "init_from",
            path=str(path),
            text=str(loaded),
            fresh=loaded.fresh,
            unused=loaded.unused,
        )

    def run(self) -> None:
        """The whole loop: resume, step, log, save, evaluate, summarize."""
        settings, steps = self.settings, self.settings.trainer.steps
        self._resume()
        if self.step == 0:
            self._save()  # a disk that cannot hold a checkpoint is found out now
        batches = self._loader()
        skipped = 0
        self._evaluate_if_due()
        while self.step < steps:
            losses, outcome = self._one_step(batches)
            self.step += 1
            self.position += settings.batch.size
            self.updates += outcome.applied
            skipped = 0 if outcome.applied else skipped + 1
            self._check(outcome, skipped)
            last = self.step == steps
            if self.step % settings.trainer.log_every == 0 or last:
                self._log(losses, outcome)
            if self.step % settings.checkpoint.every_steps == 0 or last:
                self._save()
            self._evaluate_if_due()
        if self.rank == 0:
            summarize(self.folder, settings.task)
        self.tracker.event("finish", step=self.step, position=self.position)
        self.tracker.finish()

    def _one_step(self, batches: Iterator[Batch]) -> tuple[dict[str, Tensor], Step]:
        """One optimizer step on one global batch; losses are this rank's part of its sums."""
        with self.meter.waiting():
            micro_batches, failure = self._receive(batches, self.split.micro_steps)
        whole = self._normalizers(micro_batches, failure)
        total: dict[str, Tensor] = {}
        for batch in micro_batches:
            draw = draws(self.settings.seed, batch)
            predictions = self.engine(normalize(batch.images), draw)
            losses = self.criterion(predictions, batch.targets, draw, whole)
            self.engine.backward(sum(losses.values()))
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach()
        self.meter.step()
        return total, self.engine.step(self.multiplier(self.step))

    def _receive(
        self, batches: Iterator[Batch], count: int
    ) -> tuple[list[Batch], Exception | None]:
        """This rank's micro-batches of a step, or why there are none."""
        try:
            return [next(batches).to(self.device) for _ in range(count)], None
        except Exception as error:  # the other ranks are to hear of it
            return [], error

    def _normalizers(self, batches: list[Batch], failure: Exception | None) -> Normalizers:
        """Sums over the global batch; they follow from truth alone, so before any forward.

        With them every rank learns whether any has failed or found damage: then all stop, or take
        note, together.
        """
        queries, criterion = self.settings.model.queries, self.settings.criterion
        news = torch.zeros(len(Normalizers._fields) + 2, dtype=torch.float64, device=self.device)
        for batch in batches:
            own = normalizers(batch.targets.categories, queries, criterion)
            news[:-2] += torch.stack(tuple(own))
            news[-2] += len(batch.damaged)
        news[-1] = failure is not None
        dist.all_reduce(news)
        *sums, damaged, failed = news
        if failed:
            raise_together(failure)
        if damaged:
            found = gather([row for batch in batches for row in batch.damaged])
            self._quarantine([row for part in found for row in part])
        return Normalizers(*sums)

    def _quarantine(self, found: list[dict[str, Any]]) -> None:
        step = self.step + 1
        keys = sorted({row["key"] for row in found})
        self.tracker.event("quarantined", step=step, samples=keys)
        self.quarantine.add(step, found, write=self.rank == 0)

    def _loader(self):
        settings = self.settings
        stream = train_stream(
            settings.data, self.stores, settings.task, settings.seed, self.position, self.split
        )
        height, width = settings.data.crop_size
        return loader(
            stream,
            settings.data.loader_workers,
            pin=self.device.type == "cuda",
            batch_bytes=settings.batch.micro * height * width * BYTES_PER_PIXEL,
            timeout_s=settings.data.stall_timeout_s,
        )

    def _check(self, outcome: Step, skipped: int) -> None:
        if not outcome.applied:
            self.tracker.event("skipped", step=self.step, grad_norm=str(outcome.grad_norm))
        if skipped >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"step {self.step}: {skipped} gradients in a row are not finite; "
                f"lower optimizer.lr={self.settings.optimizer.lr}"
            )

    def _log(self, losses: dict[str, Tensor], outcome: Step) -> None:
        values = torch.stack(list(losses.values()))
        dist.all_reduce(values)
        named = dict(zip(losses, values.tolist(), strict=True))
        named = {"loss": sum(named.values()), **named}
        lr = self.settings.optimizer.lr * self.multiplier(self.step - 1)
        row = {"position": self.position, **named, "lr": lr, "grad_norm": outcome.grad_norm}
        row["damaged_samples"] = len(self.quarantine)
        self.tracker.metrics(self.step, row | self.meter.read())

    def _evaluate_if_due(self) -> None:
        """Score the net at this step, unless it was done before a restart."""
        settings = self.settings.evaluation
        due = self.step > 0 and self.step % settings.every_steps == 0
        due |= self.step == self.settings.trainer.steps or (self.step == 0 and settings.at_start)
        if not due or everywhere(lambda: scores_path(self.folder, self.step).exists()):
            return
        with torch.compiler.set_stance("force_eager"):  # images have many sizes
            scores = evaluate(self.engine.module, self.val, settings, self.device)
        if self.rank == 0:
            write_json(scores_path(self.folder, self.step), {"step": self.step, **scores})
            known = {name: scores[name] for name in HEADLINE if scores.get(name) is not None}
            self.tracker.metrics(self.step, {f"val/{name}": value for name, value in known.items()})
            self.tracker.event("evaluation", step=self.step, **known)
        self.meter.restart()

    # Checkpoints

    def _count_starts(self) -> int:
        return sum(row["event"] == "start" for row in rows(self.folder / EVENTS))

    def _announce(self) -> Path | None:
        """Find the checkpoint to go on from and record the start, before anything can fail."""
        found: Path | None = everywhere(lambda: checkpoint.newest(
            self.folder / CHECKPOINTS, lambda text: self.tracker.event("damage", text=text)
        ))  # fmt: skip
        if found:
            trainer = checkpoint.load_trainer(found)
            self.step, self.position = trainer["step"], trainer["position"]
            self.updates = trainer["updates"]
        process_ids = gather(os.getpid())
        self.tracker.event(
            "start",
            attempt=self.attempt,
            launch=self.launch,
            world_size=self.world,
            zero_stage=self.settings.zero.stage,
            process_ids=process_ids,
            host=platform.node(),
            device=str(self.device),
            threads=torch.get_num_threads(),
            step=self.step,
            position=self.position,
            checkpoint=found.name if found else None,
        )
        return found

    def _resume(self) -> None:
        checkpoints = self.folder / CHECKPOINTS
        if self.found is None and everywhere(lambda: checkpoint.committed(checkpoints)):
            raise UsageError(
                f"{checkpoints}: every checkpoint is damaged (see {EVENTS}); "
                "restore one, or remove them all to start from scratch"
            )
        if self.rank == 0:
            rewind(self.folder, self.step)
        known = everywhere(lambda: rows(self.folder / QUARANTINE))
        self.quarantine = Quarantine(self.folder, self.settings.data.max_damaged, known)
        if self.found is None:
            return
        state, trainer = together(lambda: checkpoint.load(self.found))
        if changed := differences(trainer["order"], self.order):
            raise UsageError(f"{self.found}: the data order has changed: {', '.join(changed)}")
        if self.settings.zero.stage == 3:
            self.engine.load_shards(self.found / "deepspeed")
        else:
            self.engine.load_state(state, self.updates)

    def _save(self) -> None:
        """All ranks gather, rank 0 writes. A full disk costs this checkpoint, not the run."""
        folder = self.folder / CHECKPOINTS / checkpoint.name_of(self.step, self.attempt)
        state = self.engine.state()
        if self.settings.zero.stage == 3:
            self.engine.save_shards(folder / "deepspeed")
        if self.rank > 0:
            return
        trainer = {
            "step": self.step,
            "position": self.position,
            "updates": self.updates,
            "order": self.order,
            "world_size": self.world,
            "zero_stage": self.settings.zero.stage,
            "taxonomy": self.taxonomy.to_json(),
            "versions": {name: version(name) for name in PACKAGES},
        }
        try:
            checkpoint.save(folder, state, trainer)
        except OSError as error:
            if self.step == 0:
                raise
            self.tracker.event("checkpoint_failed", step=self.step, error=str(error))
            return
        self.tracker.event("checkpoint", step=self.step, position=self.position, name=folder.name)
        best = best_step(self.folder, self.settings.task)
        keep = self.settings.checkpoint.keep
        checkpoint.prune(self.folder / CHECKPOINTS, self.step, keep, best)
