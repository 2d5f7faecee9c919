"""The records of a run: starts, metrics, checkpoints, damaged samples, and scores."""

import dataclasses
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.data.order import differences
from pipeline.distributed import all_gather, call_on_all_ranks, from_rank_0, rank_and_world
from pipeline.run import checkpoint, eventlog, events, quarantine
from pipeline.run.checkpoint import TrainerState
from pipeline.run.eventlog import Kind
from pipeline.run.folder import (
    CHECKPOINTS,
    best_step,
    check_files,
    last_sign,
    rewind,
    scores_of,
    scores_path,
    summarize,
)
from pipeline.run.info import RunInfo
from pipeline.run.location import location_of
from pipeline.run.phases import Phases
from pipeline.run.progress import Progress, Rewind
from pipeline.run.quarantine import QUARANTINE, Quarantine
from pipeline.run.restarts import next_attempt, run_id
from pipeline.run.saver import Saver
from pipeline.run.track import Tracker
from pipeline.run.wandb_media import Media
from pipeline.score.headline import HEADLINE
from pipeline.score.picture import Picture
from pipeline.step.engine import Engine
from shards.errors import UsageError
from shards.files import disk_errors, write_json
from shards.jsonl import Row, rows


class Journal:
    """The records of a run. Every rank has a journal, and rank 0 alone writes.

    The constructor finds the checkpoint to resume from, and records the start before the rest of
    the set-up: the limit on starts at one step counts these records. Then rank 0 drops the
    metrics, damaged samples, and scores past that checkpoint.

    Args:
        folder: The run folder.
        info: The facts about the run that its records depend on.
        device: This rank's device.

    Attributes:
        checkpoint: The checkpoint to resume from; None at the start of a run.
        phases: What this rank does, since its start was recorded.

    Raises:
        UsageError: Every checkpoint is damaged, the sample order has changed since, or a file of
            the folder does not belong to the run.
    """

    def __init__(self, folder: Path, info: RunInfo, device: torch.device):
        self.folder, self.info = folder, info
        self.rank, self.world = rank_and_world()
        from_rank_0(lambda: check_files(folder))
        starts = from_rank_0(lambda: eventlog.read_kind(folder, events.Start))
        self.attempt = from_rank_0(lambda: next_attempt(folder / CHECKPOINTS, starts))
        self.run_id = from_rank_0(lambda: run_id(info.name, folder, starts))
        self._tracker = Tracker(
            folder,
            info.wandb,
            active=self.rank == 0,
            name=info.name,
            run_id=self.run_id,
            config={**dataclasses.asdict(info.settings), "world_size": self.world},
        )
        newest = from_rank_0(self._newest)  # a name, because hosts can have folders of their own
        self.checkpoint = folder / CHECKPOINTS / newest if newest else None
        self._resumed = from_rank_0(self._state_of_checkpoint)
        progress = self._resumed.progress if self._resumed else Progress()
        self._record_start(progress, device)
        self.phases = Phases()
        self._check_resumable()
        from_rank_0(lambda: self._rewind(progress.step))
        self._tracker.open(progress.step, info.data, self.phases)
        known = from_rank_0(lambda: rows(folder / QUARANTINE, quarantine.FIELDS))
        self._saver = Saver(folder, info, self.attempt, self.event, self.phases, progress.step)
        self._quarantine = Quarantine(folder, info.max_damaged, known)

    def resume(self, engine: Engine) -> Progress:
        """Load the checkpoint, if there is one, into the engine; return the run's progress."""
        if self.checkpoint is None or self._resumed is None:
            return Progress()
        path, progress = self.checkpoint, self._resumed.progress
        state, _ = call_on_all_ranks(lambda: checkpoint.load(path))
        if self.info.zero_stage == 3:
            engine.load_shards(path / "deepspeed")
        else:
            engine.load_state(state, progress.updates)
        return progress

    def save(self, progress: Progress, engine: Engine, *, required: bool) -> None:
        """Save a checkpoint; see `Saver.save`. All ranks must call it."""
        self._saver.save(progress, engine, required=required)

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step; only rank 0 knows it."""
        return self._saver.is_due(step)

    def is_saved(self, step: int) -> bool:
        """Return whether the checkpoint of a step is whole. All ranks must call it."""
        return from_rank_0(lambda: self._saver.is_saved(step))

    def return_before(self, step: int) -> str | None:
        """Remove the checkpoints of `step` and later; all ranks must call it.

        Returns:
            The name of the newest one that is left; None if there is none, and nothing is removed.
        """

        def removed() -> str | None:
            self._saver.wait()
            with disk_errors(self.folder):
                left = checkpoint.return_before(self.folder / CHECKPOINTS, step)
            return left and left.name

        return from_rank_0(removed)

    def rewound(self, progress: Progress, rewind: Rewind) -> Progress:
        """Record that the run has returned to a checkpoint; return the progress from there.

        The number of rewinds is that of the bad step, because the checkpoint can be older than an
        earlier rewind.

        Args:
            progress: That of the checkpoint.
            rewind: What it returns from.
        """
        bad = rewind.bad
        self.event(events.Rewound(
            step=bad.step, to_step=progress.step, position=bad.position,
            samples=bad.position - progress.position, reason=rewind.reason,
        ))  # fmt: skip
        return dataclasses.replace(progress, position=bad.position, rewinds=bad.rewinds + 1)

    def event(self, event: events.Event) -> None:
        """Record an event."""
        self._tracker.event(event)

    def metrics(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        counts = {
            "position": progress.position, "damaged_samples": len(self._quarantine),
            "skipped_steps": progress.step - progress.updates,
            "world_size": self.world, "attempt": self.attempt,
        }  # fmt: skip
        self._tracker.metrics(progress.step, {**counts, **values})

    def damaged(self, step: int, found: Sequence[Row]) -> None:
        """Record the damaged samples that all ranks found at a step.

        Raises:
            DataError: More samples are damaged than the run allows.
        """
        if found:
            keys = sorted({row["key"] for row in found})
            self.event(events.Quarantined(step=step, samples=keys))
            self._quarantine.add(step, found, write=self.rank == 0)

    def alert(self, title: str, text: str) -> None:
        """Send an alert to the people who follow the run in W&B."""
        self._tracker.alert(title, text)

    def is_scored(self, step: int) -> bool:
        """Return whether a step has been scored, perhaps before a restart."""
        return from_rank_0(lambda: bool(scores_of(self.folder, step)))

    def scored(
        self, step: int, scores: Mapping[str, Any], pictures: Sequence[Picture] = ()
    ) -> None:
        """Record the scores of a step, and pictures for W&B; only rank 0 writes.

        The checkpoint of the step is whole before, if the disk accepts it.
        """
        if self.rank > 0:
            return
        self._saver.wait()
        try:
            write_json(scores_path(self.folder, step), {"step": step, **scores})
        except OSError as error:
            warnings.warn(f"the scores of step {step} cannot be written: {error}", stacklevel=2)
        known = {name: scores[name] for name in HEADLINE if scores.get(name) is not None}
        row = {f"val/{name}": value for name, value in known.items()}
        self._tracker.metrics(step, row, Media(scores.get("classes", ()), pictures))
        self.event(events.Evaluation(step=step, averaged="averaged" in scores, scores=known))
        best = best_step(self.folder, self.info.task)
        for path in checkpoint.committed(self.folder / CHECKPOINTS):
            if checkpoint.step_of(path) == step:
                self._tracker.checkpoint(path, step, known, step == best)

    def finish(self, progress: Progress) -> None:
        """Write the summary, and record the end of the run."""
        self._saver.close()
        finish = self._progressed(events.Finish, progress)
        from_rank_0(lambda: summarize(self.folder, self.info.task, finish))
        self.event(finish)
        self._tracker.finish()

    def close(self, progress: Progress) -> None:
        """End the records of this start, which are continued by another of the same process."""
        self._saver.close()
        self._tracker.finish(before=progress.step)

    def stopped(self, progress: Progress, workers: int | None) -> None:
        """Record that the run was asked to stop, or that a number of workers takes over."""
        self._saver.close()
        self.event(self._progressed(events.Stopped, progress, workers=workers))
        self._tracker.finish(before=progress.step)

    def failed(self, progress: Progress, error: Exception) -> None:
        """Tell the people who follow the run in W&B that this rank has failed."""
        self._saver.close()
        self._tracker.finish(before=progress.step, error=f"step {progress.step}: {error}")

    def _progressed(self, kind: Callable[..., Kind], progress: Progress, **more: Any) -> Kind:
        """Return an event of a kind that says how far the run has progressed."""
        counts = {"step": progress.step, "position": progress.position}
        return kind(**counts, seconds=self.phases.seconds(), **more)

    def _newest(self) -> str | None:
        checkpoints = self.folder / CHECKPOINTS
        newest = checkpoint.newest(checkpoints, lambda text: self.event(events.Damage(text=text)))
        return newest.name if newest else None

    def _state_of_checkpoint(self) -> TrainerState | None:
        return checkpoint.load_trainer(self.checkpoint) if self.checkpoint else None

    def _rewind(self, step: int) -> None:
        dropped = rewind(self.folder, step) | {eventlog.EVENTS: eventlog.unreadable(self.folder)}
        for name, count in dropped.items():
            if count:
                text = f"{name} has {count} lines that cannot be read; they are left out"
                self.event(events.Damage(text=text))

    def _record_start(self, progress: Progress, device: torch.device) -> None:
        self.event(events.Start(
            attempt=self.attempt,
            launch=self.info.launch,
            run_id=self.run_id,
            folder=location_of(self.folder),
            world_size=self.world,
            zero_stage=self.info.zero_stage,
            process_ids=all_gather(os.getpid()),
            host=platform.node(),
            hosts=all_gather(platform.node()),
            device=str(device),
            threads=torch.get_num_threads(),
            step=progress.step,
            position=progress.position,
            checkpoint=self.checkpoint.name if self.checkpoint else None,
            last_sign=from_rank_0(lambda: last_sign(self.folder)),
        ))  # fmt: skip

    def _check_resumable(self) -> None:
        checkpoints = self.folder / CHECKPOINTS
        if self._resumed is None:
            if from_rank_0(lambda: checkpoint.committed(checkpoints)):
                raise UsageError(
                    f"every checkpoint is damaged (see {eventlog.EVENTS})",
                    where=checkpoints,
                    fix="restore one, or remove them all to start from scratch",
                )
        elif changed := differences(self._resumed.order, self.info.order):
            raise UsageError(
                f"the data order has changed: {', '.join(changed)}",
                where=self.checkpoint,
                fix="give the settings and shards that the run was started with, "
                "or another name=NAME",
            )
