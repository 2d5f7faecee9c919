"""Watch the numbers of a run: gradients that are not finite, and losses that jump."""

import dataclasses
import math
import platform
from collections.abc import Sequence
from statistics import median
from typing import Any, NoReturn

import torch

from pipeline.distributed import all_gather, sum_on_hosts
from pipeline.run import events
from pipeline.run.diagnoses import Diagnoses
from pipeline.run.journal import Journal
from pipeline.run.progress import Progress, Rewind, Rewinding, Watched
from pipeline.run.settings import GuardSettings
from pipeline.step.audit import Audit, Found
from pipeline.step.engine import Update
from pipeline.step.step import GlobalBatch, TrainingStep
from shards.errors import Failed

ALERT_SKIPPED_IN_A_ROW = 5
LOSSES = 50  # with which a loss is compared
LEAST_LOSSES = 20  # fewer say too little about what is usual
OTHER_RUN = "train another name=NAME with a lower optimizer.lr"
LEAST_DEVIATION = 0.02  # of the median; losses that hardly differ make no jump of a small change


class Final(Failed):
    """An error that another start of the workers would repeat. All ranks raise it together."""


class Guard:
    """Looks at the gradient norm and at the loss of every step, without a wait for a GPU.

    The loss of a step is summed over the ranks together with the normalizers of the next one, so
    that it is known one step late. Before a checkpoint it is summed at once: no checkpoint has
    steps whose losses were not looked at.

    Args:
        settings: What happens to a bad step.
        journal: The records of the run.
        step: The training step, which has the losses.
        diagnoses: Finds the cause of a bad step.
        audit: Compares the workers with each other.
    """

    def __init__(
        self,
        settings: GuardSettings,
        journal: Journal,
        step: TrainingStep,
        diagnoses: Diagnoses,
        audit: Audit,
    ):
        self._settings, self._journal = settings, journal
        self._step, self._diagnoses = step, diagnoses
        self._audit = audit
        self._watched = Watched()
        self._waiting: tuple[Progress, GlobalBatch] | None = None  # whose loss is not known yet

    def resume(self, progress: Progress) -> None:
        """Continue with what the guard knew when a checkpoint was saved."""
        self._watched = progress.watched

    def note(self, progress: Progress) -> Progress:
        """Return the progress with what the guard knows, for a checkpoint."""
        return dataclasses.replace(progress, watched=self._watched)

    def before(self, step: int) -> None:
        """Look at the weights before a step that is audited.

        Raises:
            Failed: Those of a worker are wrong.
        """
        self._judge(step, self._audit.before(step))

    def computed(self, step: int, batch: GlobalBatch) -> None:
        """Look at what was computed in a step that is audited, before the update.

        Raises:
            Failed: A worker has computed wrong numbers.
        """
        self._judge(step, self._audit.after(batch))

    def updated(self, progress: Progress, update: Update, batch: GlobalBatch) -> None:
        """Look at the outcome of a step.

        Args:
            progress: That after the step.
            update: The outcome.
            batch: This rank's part of its batch.

        Raises:
            Failed: Too many updates in a row were skipped, or the policy is to stop.
            Rewinding: The run has to return to a checkpoint.
        """
        step, reason = progress.step, "the gradients are not finite"
        self._audit.updated(step)
        if update.applied:
            self._watch(skipped_in_a_row=0)
            self._waiting = progress, batch
            return
        self._waiting = None
        in_a_row = self._watched.skipped_in_a_row + 1
        self._watch(skipped_in_a_row=in_a_row)
        self._journal.event(events.Skipped(step=step, grad_norm=str(update.grad_norm)))
        facts = {"reason": reason, "grad_norm": update.grad_norm, "weights": "those of the step"}
        found = self._diagnoses.find(step, batch, facts) if in_a_row == 1 else None
        if in_a_row == ALERT_SKIPPED_IN_A_ROW:
            self._journal.alert("skipped", f"steps up to {step}: {reason}")
        if self._settings.policy == "stop":
            self._stop(step, reason, found)
        if in_a_row < self._settings.max_skipped:
            return
        if self._settings.policy == "rewind":
            self._rewind(progress, step - in_a_row + 1, f"{in_a_row} gradients are not finite")
        raise Failed(
            f"{in_a_row} gradients in a row are not finite",
            where=f"step {step}",
            fix="lower optimizer.lr",
        )

    def settle(self) -> None:
        """Look at the loss of the last step now. All ranks must call it.

        Raises:
            Final: The loss has jumped, and the policy is to stop, or the run cannot rewind.
            Rewinding: The run has to return to a checkpoint.
        """
        if self._waiting:
            own = torch.tensor(self._step.take_loss(), dtype=torch.float64)
            self.look(float(sum_on_hosts(own)))

    def look(self, loss: float) -> None:
        """Look at the loss of the last step, summed over all ranks, unless that was done before.

        Raises:
            Final: The loss has jumped, and the policy is to stop, or the run cannot rewind.
            Rewinding: The run has to return to a checkpoint.
        """
        if self._waiting is None:
            return
        (progress, batch), self._waiting = self._waiting, None
        before, step = self._watched, progress.step
        usual, deviations = distance(loss, before.losses)
        limit = self._settings.spike
        is_jump = not math.isfinite(loss) or (limit is not None and deviations > limit)
        self._watch(jumped=is_jump)
        if math.isfinite(loss):
            self._watch(losses=(*before.losses, loss)[-LOSSES:])
        if not is_jump or before.jumped:
            return
        self._journal.event(events.Spike(
            step=step, loss=f"{loss:.6g}", usual=usual, deviations=f"{deviations:.3g}"
        ))  # fmt: skip
        facts = {"reason": "the loss jumps", "loss": loss, "usual_loss": usual,
                 "deviations": deviations, "weights": "those after the step"}  # fmt: skip
        found = self._diagnoses.find(step, batch, facts)
        reason = f"the loss jumps to {loss:.6g}"
        if self._settings.policy == "stop":
            self._stop(step, reason, found)
        if self._settings.policy == "rewind":
            self._rewind(progress, step, reason)

    def _watch(self, **changes: Any) -> None:
        self._watched = dataclasses.replace(self._watched, **changes)

    def _rewind(self, progress: Progress, first: int, reason: str) -> NoReturn:
        """Return to a checkpoint from before the step `first`, without the samples since.

        A checkpoint of the step directly before has the weights with which the numbers were bad.
        """
        step, limit = progress.step, self._settings.max_rewinds
        if progress.rewinds >= limit:
            raise Final(
                f"{reason}, and guard.max_rewinds={limit} is reached",
                where=f"step {step}",
                fix=f"resume with guard.policy=skip or a greater guard.max_rewinds, or {OTHER_RUN}",
            )
        if self._journal.return_before(first - 1) is None:
            raise Final(
                f"{reason}, and there is no checkpoint from before to return to",
                where=f"step {step}",
                fix=f"resume with guard.policy=skip, or {OTHER_RUN}",
            )
        raise Rewinding(Rewind(progress, reason))

    def _stop(self, step: int, reason: str, found: events.Diagnosed | None) -> NoReturn:
        see = f"see {found.file}, and " if found else ""
        raise Final(
            reason,
            where=f"step {step}",
            fix=f"{see}resume with guard.policy=skip, or {OTHER_RUN}",
        )

    def _judge(self, step: int, found: Found | None) -> None:
        if found is None:
            return
        names = all_gather(platform.node())
        hosts = [names[worker] for worker in found.workers]
        event = events.Audited(step=step, workers=found.workers, hosts=hosts, first=found.what)
        self._journal.event(event)
        raise Failed(
            event.problem,
            where=f"step {step}",
            fix="the workers restart from the newest checkpoint; if it happens again, test the "
            "memory and the processor of the machine, or leave it out",
        )


def distance(loss: float, before: Sequence[float]) -> tuple[float, float]:
    """Return the median of the losses before, and how far a loss is above it.

    The distance is in robust standard deviations, 1.4826 times the median distance from the median,
    and at least LEAST_DEVIATION of the median. It is 0 if there are too few losses.
    """
    if not before:
        return 0.0, 0.0
    usual = median(before)
    if len(before) < LEAST_LOSSES:
        return usual, 0.0
    deviation = 1.4826 * median(abs(other - usual) for other in before)
    return usual, (loss - usual) / max(deviation, LEAST_DEVIATION * abs(usual), 1e-12)
