"""Write the checkpoints of a run, and remove those that are not kept."""

import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from pipeline.distributed import from_rank_0, rank_and_world
from pipeline.run import checkpoint, events, retention
from pipeline.run.checkpoint import Progress, TrainerState
from pipeline.run.folder import CHECKPOINTS, best_step
from pipeline.run.info import RunInfo
from pipeline.run.phases import Phases
from pipeline.run.versions import versions
from pipeline.step.engine import Engine
from shards.errors import Failed
from shards.files import disk_errors


class Saver:
    """The checkpoints that this start of a run writes. Every rank has one, and rank 0 writes.

    Args:
        folder: The run folder.
        info: The facts about the run that its records depend on.
        attempt: Number of this start.
        record: Records an event.
        phases: What this rank does.
    """

    def __init__(
        self,
        folder: Path,
        info: RunInfo,
        attempt: int,
        record: Callable[[events.Event], None],
        phases: Phases,
    ):
        self._folder, self._info, self._attempt = folder, info, attempt
        self._record, self._phases = record, phases

    def save(self, progress: Progress, engine: Engine, *, required: bool) -> None:
        """Write a checkpoint, and remove those that are not kept. All ranks must call it.

        Args:
            progress: How far the run has progressed.
            engine: Holds the state.
            required: Fail if the disk refuses the checkpoint. Otherwise the run continues without.

        Raises:
            Failed: The state has values that are not finite: nothing is written or removed. Or a
                required checkpoint cannot be written.
        """
        folder = self._folder / CHECKPOINTS / checkpoint.name_of(progress.step, self._attempt)
        state = engine.state()
        if name := from_rank_0(lambda: checkpoint.not_finite(state)):
            raise Failed(
                f"{name} has values that are not finite, so that no checkpoint is written",
                where=f"step {progress.step}",
                fix="train another name=NAME with a lower optimizer.lr"
                if progress.step
                else "give other model.weights or model.init_from",
            )
        if self._info.zero_stage == 3:
            engine.save_shards(folder / "deepspeed")
        from_rank_0(lambda: self._write(folder, progress, state, required))

    def _write(
        self, folder: Path, progress: Progress, state: dict[str, Tensor], required: bool
    ) -> None:
        info, (_, world) = self._info, rank_and_world()
        trainer = TrainerState(
            progress, info.order, world, info.zero_stage, info.taxonomy, versions()
        )
        try:
            checkpoint.save(folder, state, trainer)
        except OSError as error:
            self._record(events.CheckpointFailed(step=progress.step, error=str(error)))
            if not required:
                return
            with disk_errors(folder):
                raise
        self._record(
            events.Checkpoint(
                step=progress.step,
                position=progress.position,
                folder=folder.name,
                seconds=self._phases.seconds(),
            )
        )
        checkpoints = self._folder / CHECKPOINTS
        steps = [checkpoint.step_of(path) for path in checkpoint.committed(checkpoints)]
        best = best_step(self._folder, info.task, steps)
        try:
            retention.prune(checkpoints, progress.step, info.keep, best)
        except OSError as error:
            warnings.warn(f"an old checkpoint cannot be removed: {error}", stacklevel=2)
