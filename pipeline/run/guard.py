"""Watch the numbers of a run: gradients that are not finite, and losses that jump."""

import math
import platform
from statistics import median

import torch

from pipeline.distributed import all_gather, sum_on_hosts
from pipeline.run import events
from pipeline.run.checkpoint import Progress
from pipeline.run.diagnoses import Diagnoses
from pipeline.run.journal import Journal
from pipeline.settings import GuardSettings
from pipeline.step.audit import Audit, Found
from pipeline.step.engine import Update
from pipeline.step.step import GlobalBatch, TrainingStep
from shards.errors import Failed

ALERT_SKIPPED_IN_A_ROW = 5
LOSSES = 50  # with which a loss is compared
LEAST_LOSSES = 20  # fewer say too little about what is usual
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
        self._skipped_in_a_row = 0
        self._losses: list[float] = []
        self._waiting: tuple[int, GlobalBatch] | None = None  # the step whose loss is not known yet
        self._jumped = False  # whether the last loss was a jump

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
        """
        step = progress.step
        self._audit.updated(step)
        if update.applied:
            self._skipped_in_a_row, self._waiting = 0, (step, batch)
            return
        self._waiting = None
        self._skipped_in_a_row += 1
        self._journal.event(events.Skipped(step=step, grad_norm=str(update.grad_norm)))
        facts = {"reason": "the gradients are not finite", "grad_norm": update.grad_norm,
                 "weights": "those of the step"}  # fmt: skip
        is_first = self._skipped_in_a_row == 1
        found = self._diagnoses.find(step, batch, facts) if is_first else None
        if self._skipped_in_a_row == ALERT_SKIPPED_IN_A_ROW:
            self._journal.alert("skipped", f"steps up to {step}: gradients are not finite")
        self._act(step, "the gradients are not finite", found)
        if self._skipped_in_a_row >= self._settings.max_skipped:
            raise Failed(
                f"{self._skipped_in_a_row} gradients in a row are not finite",
                where=f"step {step}",
                fix="lower optimizer.lr",
            )

    def settle(self) -> None:
        """Look at the loss of the last step now. All ranks must call it.

        Raises:
            Final: The loss has jumped, and the policy is to stop.
        """
        if self._waiting:
            own = torch.tensor(self._step.take_loss(), dtype=torch.float64)
            self.look(float(sum_on_hosts(own)))

    def look(self, loss: float) -> None:
        """Look at the loss of the last step, summed over all ranks, unless that was done before.

        Raises:
            Final: The loss has jumped, and the policy is to stop.
        """
        if self._waiting is None:
            return
        (step, batch), self._waiting = self._waiting, None
        usual, deviations = distance(loss, self._losses)
        limit = self._settings.spike
        is_jump = not math.isfinite(loss) or (limit is not None and deviations > limit)
        if math.isfinite(loss):
            self._losses = [*self._losses, loss][-LOSSES:]
        was_jump, self._jumped = self._jumped, is_jump
        if not is_jump or was_jump:
            return
        self._journal.event(events.Spike(
            step=step, loss=f"{loss:.6g}", usual=usual, deviations=f"{deviations:.3g}"
        ))  # fmt: skip
        facts = {"reason": "the loss jumps", "loss": loss, "usual_loss": usual,
                 "deviations": deviations, "weights": "those after the step"}  # fmt: skip
        self._act(step, f"the loss jumps to {loss:.6g}", self._diagnoses.find(step, batch, facts))

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

    def _act(self, step: int, reason: str, found: events.Diagnosed | None) -> None:
        if self._settings.policy == "stop":
            see = f"see {found.file}, and " if found else ""
            raise Final(
                reason,
                where=f"step {step}",
                fix=f"{see}resume with guard.policy=skip, or train another name=NAME with a "
                "lower optimizer.lr",
            )


def distance(loss: float, before: list[float]) -> tuple[float, float]:
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
