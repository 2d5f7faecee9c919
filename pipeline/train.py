"""The training loop of one worker. It knows torch.distributed, and not who started it."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch.backends import cudnn

from model.network import Network
from pipeline.data.batch import Batch
from pipeline.data.split import split_of
from pipeline.data.training import TrainingData
from pipeline.distributed import call_on_all_ranks, from_rank_0, rank_and_world, rank_device
from pipeline.pictures.gallery import Gallery
from pipeline.pictures.replay import pictures, write_sheet
from pipeline.run import eventlog, stop
from pipeline.run.build import build_engine
from pipeline.run.diagnoses import Diagnoses
from pipeline.run.guard import Guard
from pipeline.run.info import RunInfo
from pipeline.run.journal import Journal
from pipeline.run.progress import Rewind, Rewinding
from pipeline.run.restarts import first_step
from pipeline.run.start_parts import StartParts
from pipeline.run.warn import recorded_warnings
from pipeline.run.watchdog import Watchdog
from pipeline.score.evaluate import evaluate
from pipeline.settings import RunSettings
from pipeline.step.audit import Audit
from pipeline.step.hosts import Hosts
from pipeline.step.schedule import lr_multiplier
from pipeline.step.step import TrainingStep, global_losses

if TYPE_CHECKING:
    from pipeline.run.fault_schedule import Schedule
    from pipeline.run.faults import Injector


def train(
    settings: RunSettings,
    folder: Path,
    launch: str = "",
    faults: "Schedule | None" = None,
    parts: StartParts | None = None,
    more: Callable[[], int | None] | None = None,
) -> bool:
    """Train until `trainer.steps`, from the newest intact checkpoint or from scratch.

    Call it on every rank of an initialized process group. If the run is asked to stop, all ranks
    write a checkpoint of the steps that they have taken, and return. They also return at a
    checkpoint if more workers can take over.

    Args:
        settings: The settings of the run.
        folder: The run folder.
        launch: Identifier of the user's command, which its restarts share.
        faults: Faults to inject on purpose.
        parts: The parts of this start until now.
        more: Returns the number of workers that can take over, if it is larger than that of these,
            otherwise None. Rank 0 calls it at each checkpoint. None: these workers stay.

    Returns:
        Whether the run has taken all its steps.
    """
    rank, _ = rank_and_world()
    parts, rewind = parts or StartParts(time.time()), None
    with recorded_warnings(folder, rank):
        while True:
            try:
                worker = Worker(settings, folder, launch, faults, parts, more, rewind)
            except stop.Stopped:
                return False
            try:
                with worker.watchdog, worker.faults or nullcontext():
                    return worker.run()
            except Rewinding as rewinding:
                worker.journal.close(worker.progress)
                parts, rewind = StartParts(), rewinding.rewind
            del worker
            gc.collect()  # the engine has cycles, and two do not fit in the memory of a GPU


class Worker:
    """One rank: its part of the data, its engine, and the records of the run."""

    def __init__(
        self,
        settings: RunSettings,
        folder: Path,
        launch: str,
        faults: "Schedule | None",
        parts: StartParts,
        more: Callable[[], int | None] | None = None,
        rewind: Rewind | None = None,
    ):
        self.settings, self.folder, self.parts = settings, folder, parts
        self.more, self.rewind = more, rewind
        rank, world = rank_and_world()
        self.device = rank_device()
        stop.check_together(folder)
        self.split = split_of(settings, world, rank)
        self.data = call_on_all_ranks(
            lambda: TrainingData(settings.data, settings.task, settings.seed)
        )
        parts.end("data set")
        self.journal = Journal(folder, self._run_info(launch), self.device)
        parts.end("records")
        self.watchdog = Watchdog(
            folder,
            rank=rank,
            launch=launch,
            attempt=self.journal.attempt,
            phases=self.journal.phases,
            limit_s=settings.trainer.hang_timeout_s,
        )
        self.engine = build_engine(
            settings, self.journal, self.data.taxonomy, self.split, self.device
        )
        self.faults: Injector | None = None
        if faults:
            from pipeline.run import faults as injection

            self.faults = injection.Injector(
                faults, folder, launch, self.journal.attempt, self.engine
            )
        self.train_step = TrainingStep(
            self.engine,
            settings.criterion,
            queries=settings.model.queries,
            seed=settings.seed,
            split=self.split,
            device=self.device,
        )
        draw = partial(pictures, taxonomy=self.data.taxonomy)
        diagnoses = Diagnoses(folder, self.journal, self.engine, self.train_step, draw, write_sheet)
        audit = Audit(settings.guard.audit_every, self.train_step, self.engine.module)
        self.guard = Guard(settings.guard, self.journal, self.train_step, diagnoses, audit)
        self.hosts = Hosts(self.device)
        self.lr_multiplier = lr_multiplier(settings.schedule, settings.trainer.steps)
        parts.end("network")

    def run(self) -> bool:
        """Resume, then step, log, save, and evaluate until the last step or a request to stop.

        Returns:
            Whether the run has taken all its steps.
        """
        self.network = cast(Network, self.engine.module)
        self.progress = self.journal.resume(self.engine)
        self.parts.end("load")
        try:
            if self.rewind:
                self.progress = self.journal.rewound(self.progress, self.rewind)
            self.guard.resume(self.progress)
            if self.progress.step == 0 or self.rewind:
                self._save(required=True)  # reveals a full disk before any work is done
            self._evaluate_if_due()
            self._steps()
        except stop.Stopped as stopped:
            if not self.journal.is_saved(self.progress.step):
                self._save()
            self.journal.stopped(self.progress, stopped.workers)
            return False
        except Rewinding:
            raise
        except Exception as error:
            self.journal.failed(self.progress, error)
            raise
        self.journal.finish(self.progress)
        return True

    def _steps(self) -> None:
        settings, journal = self.settings, self.journal
        batches, is_first = self._batches(), True
        while self.progress.step < settings.trainer.steps:
            journal.phases.enter("data")
            batch = self.train_step.receive(batches, journal.is_due(self.progress.step + 1))
            self.guard.look(batch.loss_before)
            journal.phases.enter("train")
            if self.faults:
                self.faults.before_step(self.progress.step + 1)
            journal.damaged(self.progress.step + 1, batch.damaged)
            self.guard.before(self.progress.step + 1)
            self.network.anneal(self.progress.step / settings.trainer.steps)
            losses = self.train_step.forward_backward(batch)
            self.guard.computed(self.progress.step + 1, batch)
            lr_multiplier = self.lr_multiplier(self.progress.step)
            update = self.engine.step(lr_multiplier)
            self.progress = self.progress.after_step(settings.batch.size, update.applied)
            step = self.progress.step
            if is_first and journal.rank == 0:
                history = eventlog.read(self.folder)
                journal.event(first_step(history, self.parts, step, journal.phases))
            is_first = False
            self.guard.updated(self.progress, update, batch)
            is_last = step == settings.trainer.steps
            if step % settings.trainer.log_every == 0 or is_last:
                self._log(losses, lr_multiplier, update.grad_norm)
            if batch.is_due or is_last or self._is_evaluated(step):  # no score without weights
                self._save(required=is_last)
                self._evaluate_if_due()
                workers = from_rank_0(self.more) if self.more and not is_last else None
                if workers and journal.is_saved(step):
                    raise stop.Stopped(workers)

    def _batches(self) -> Iterator[Batch]:
        """Yield batches. A request to stop reaches `receive` like an error of the loader.

        `receive` tells every rank of it in the all-reduce that it does anyway, so that no rank
        takes a step that the others do not take.
        """
        batches = self.data.batches(
            self.progress.position, self.split, pin_memory=self.device.type == "cuda"
        )
        while True:
            stop.check(self.folder)
            yield next(batches)

    def _save(self, required: bool = False) -> None:
        self.journal.phases.enter("checkpoint")
        if self.faults:
            self.faults.before_checkpoint(self.progress.step)
        self.guard.settle()
        self.journal.save(self.guard.note(self.progress), self.engine, required=required)

    def _run_info(self, launch: str) -> RunInfo:
        settings = self.settings
        return RunInfo(
            settings.name, settings.task, launch, settings=settings,
            order=self.data.order.identity(),
            data={store.location: store.manifest.fingerprint for store in self.data.stores},
            taxonomy=self.data.taxonomy,
            zero_stage=settings.zero.stage, checkpoint=settings.checkpoint,
            max_damaged=settings.data.max_damaged,
            wandb=settings.tracking.wandb,
        )  # fmt: skip

    def _log(self, losses: dict[str, torch.Tensor], lr_multiplier: float, grad_norm: float) -> None:
        rates = {"lr": self.settings.optimizer.lr * lr_multiplier, "grad_norm": grad_norm}
        rates |= {f"lr/{part}": rate for part, rate in self.engine.rates().items()}
        terms = global_losses(losses)  # waits for the GPU, so that the time until here is measured
        speed = self.hosts.speed(self.train_step.meter.read())
        self.journal.metrics(self.progress, {**terms, **rates, **speed, **self.hosts.memory()})

    def _is_evaluated(self, step: int) -> bool:
        """Return whether the settings ask for the scores of a step."""
        settings = self.settings.evaluation
        due = settings.at_start if step == 0 else step % settings.every_steps == 0
        return due or step == self.settings.trainer.steps

    def _evaluate_if_due(self) -> None:
        """Score the network at this step, unless that was done before a restart."""
        settings, step = self.settings.evaluation, self.progress.step
        if not self._is_evaluated(step) or self.journal.is_scored(step):
            return
        self.journal.phases.enter("evaluate")
        # The images have many sizes: compiling for each, or a search for its fastest convolutions,
        # would take longer than the evaluation.
        with (
            torch.compiler.set_stance("force_eager"),
            cudnn.flags(enabled=True, benchmark=False),
            self.engine.averaged(),
        ):
            gallery = Gallery(self.settings.task)
            with_pictures = self.settings.tracking.wandb.mode != "disabled"
            scores = evaluate(
                self.network,
                self.data.val,
                settings,
                self.device,
                advance=self._advance,
                seen=gallery.add if with_pictures else None,
            )
        if self.settings.optimizer.ema is not None:
            scores["averaged"] = True
        self.journal.scored(step, scores, gallery.gathered())
        self.train_step.meter.restart()

    def _advance(self) -> None:
        """Pass from one image of an evaluation to the next, unless the run is asked to stop."""
        self.journal.phases.enter("evaluate")
        stop.check_together(self.folder)
