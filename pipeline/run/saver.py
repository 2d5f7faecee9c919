"""Save the checkpoints of a run while it trains, and remove those that are not kept."""

import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.distributed import from_rank_0, rank_and_world
from pipeline.run import checkpoint, eventlog, events, retention
from pipeline.run.cadence import Cadence, mtbf_s, suggested_minutes
from pipeline.run.checkpoint import Progress, TrainerState
from pipeline.run.folder import CHECKPOINTS, best_step
from pipeline.run.info import RunInfo
from pipeline.run.phases import Phases
from pipeline.run.snapshot import Snapshot
from pipeline.run.versions import versions
from pipeline.run.writer import Reply, Writer
from pipeline.step.engine import Engine
from shards.errors import Failed
from shards.files import disk_errors


@dataclass(frozen=True)
class Saving:
    """A checkpoint that is being written.

    Attributes:
        progress: How far the run had progressed.
        name: Name of its folder.
        began: When training began to wait for it, by `time.monotonic`.
        required: Whether training waits until it is written.
        stall_s: How long training waited, unless it is required.
        seconds: The time of each phase at the copy.
    """

    progress: Progress
    name: str
    began: float
    required: bool
    stall_s: float
    seconds: dict[str, float]


class Saver:
    """The checkpoints that this start of a run saves. Every rank has one, and all must call `save`.

    Training waits while rank 0 copies the state to memory that another process writes to the disk.
    One checkpoint at a time is written: the next one waits for it.

    Args:
        folder: The run folder.
        info: The facts about the run that its records depend on.
        attempt: Number of this start.
        record: Records an event.
        phases: What this rank does.
        saved_step: Step of the checkpoint from which the run is resumed, 0 without one.
    """

    def __init__(
        self,
        folder: Path,
        info: RunInfo,
        attempt: int,
        record: Callable[[events.Event], None],
        phases: Phases,
        saved_step: int,
    ):
        self._folder, self._info, self._attempt = folder, info, attempt
        self._record, self._phases, self._saved_step = record, phases, saved_step
        self._rank, self._world = rank_and_world()
        self._cadence = Cadence(info.checkpoint)
        self._snapshot: Snapshot | None = None
        self._writer: Writer | None = None
        self._awaited: deque[Callable[[Reply], None]] = deque()  # what to do with each reply
        self._error: OSError | None = None  # of the last checkpoint
        self._mtbf_s = 0.0

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step, by the clock of rank 0.

        A checkpoint that was written meanwhile is recorded.
        """
        self._receive(wait=False)
        return self._rank == 0 and self._cadence.is_due(step)

    def is_saved(self, step: int) -> bool:
        """Return whether the newest checkpoint, which is whole from here on, is of a step."""
        self.wait()
        return self._saved_step == step

    def save(self, progress: Progress, engine: Engine, *, required: bool) -> None:
        """Copy the state, and start to write it.

        Args:
            progress: How far the run has progressed.
            engine: Holds the state.
            required: Wait until it is written, and fail if the disk refuses it. Otherwise the run
                continues, without the checkpoint if the disk refuses it.

        Raises:
            Failed: The state has values that are not finite: nothing is written or removed. Or a
                required checkpoint cannot be written.
        """
        began = time.monotonic()
        found = self._copy(engine)
        if name := from_rank_0(lambda: found):
            raise Failed(
                f"{name} has values that are not finite, so that no checkpoint is written",
                where=f"step {progress.step}",
                fix="train another name=NAME with a lower optimizer.lr"
                if progress.step
                else "give other model.weights or model.init_from",
            )
        folder = self._folder / CHECKPOINTS / checkpoint.name_of(progress.step, self._attempt)
        if self._info.zero_stage == 3:
            engine.save_shards(folder / "deepspeed")
        from_rank_0(lambda: self._write(folder, progress, began, required))
        self._cadence.restart()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, and record it."""
        self._receive(wait=True)

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and end the process that writes."""
        self.wait()
        if self._writer:
            self._writer.close()

    def _copy(self, engine: Engine) -> str | None:
        """Copy the state to rank 0's memory; return the name of a tensor that is not finite."""
        if self._rank > 0:
            if self._info.zero_stage > 0:  # all ranks take part in gathering the tensors
                deque(engine.tensors(), maxlen=0)
            return None
        self.wait()
        self._snapshot = self._snapshot or Snapshot(engine.layout())
        return self._snapshot.fill(engine.tensors())

    def _write(self, folder: Path, progress: Progress, began: float, required: bool) -> None:
        info, snapshot = self._info, self._snapshot
        assert snapshot is not None
        trainer = TrainerState(
            progress, info.order, self._world, info.zero_stage, info.taxonomy, versions()
        )
        waited = time.monotonic() - began
        saving = Saving(progress, folder.name, began, required, waited, self._phases.seconds())
        self._error = None
        try:
            if self._writer is None or not self._writer.is_alive():
                self._writer = Writer(snapshot.memory)
            self._writer.write(folder, snapshot.size, trainer.to_text())
            self._awaited.append(partial(self._written, saving))
        except OSError as error:
            self._written(saving, Reply(error=error))
        if not required:
            return
        self.wait()
        if isinstance(self._error, ChildProcessError):
            raise Failed(str(self._error), where=folder, fix="run the same command to resume")
        if self._error:
            with disk_errors(folder):
                raise self._error

    def _receive(self, *, wait: bool) -> None:
        while self._awaited:
            assert self._writer is not None
            reply = self._writer.reply(wait=wait)
            if reply is None:
                return
            self._awaited.popleft()(reply)

    def _written(self, saving: Saving, reply: Reply) -> None:
        """Record the outcome of a checkpoint; remove those that it has made outdated."""
        step, self._error = saving.progress.step, reply.error
        if reply.error:
            self._record(events.CheckpointFailed(step=step, error=str(reply.error)))
            return
        self._saved_step = step
        self._record(
            events.Checkpoint(
                step=step,
                position=saving.progress.position,
                folder=saving.name,
                seconds=self._phases.seconds() if saving.required else saving.seconds,
                stall_s=time.monotonic() - saving.began if saving.required else saving.stall_s,
                write_s=reply.seconds,
                suggested_minutes=None if saving.required else self._suggested(saving, reply),
            )
        )
        checkpoints = self._folder / CHECKPOINTS
        steps = [checkpoint.step_of(path) for path in checkpoint.committed(checkpoints)]
        best = best_step(self._folder, self._info.task, steps)
        outdated = retention.outdated_in(checkpoints, step, self._info.checkpoint.keep, best)
        if outdated and self._writer:
            try:
                self._writer.remove(outdated)
                self._awaited.append(_removed)
            except ChildProcessError as error:
                _removed(Reply(error=error))

    def _suggested(self, saving: Saving, reply: Reply) -> float:
        self._mtbf_s = self._mtbf_s or mtbf_s(eventlog.read(self._folder), self._world)
        return suggested_minutes(saving.stall_s, reply.seconds, self._mtbf_s)


def _removed(reply: Reply) -> None:
    if reply.error:
        warnings.warn(f"an old checkpoint cannot be removed: {reply.error}", stacklevel=2)
