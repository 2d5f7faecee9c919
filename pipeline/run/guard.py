"""Watch the numbers of a run: gradients that are not finite."""

from pipeline.run import events
from pipeline.run.journal import Journal
from pipeline.step.engine import Update
from shards.errors import Failed

MAX_SKIPPED_IN_A_ROW = 20
ALERT_SKIPPED_IN_A_ROW = 5


class Guard:
    """Looks at the outcome of every step, and ends the run if too many are bad.

    Args:
        journal: The records of the run.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._skipped_in_a_row = 0

    def updated(self, step: int, update: Update) -> None:
        """Record the step if its update was skipped.

        Raises:
            Failed: The last MAX_SKIPPED_IN_A_ROW updates were all skipped.
        """
        if update.applied:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        self._journal.event(events.Skipped(step=step, grad_norm=str(update.grad_norm)))
        if self._skipped_in_a_row == ALERT_SKIPPED_IN_A_ROW:
            self._journal.alert("skipped", f"steps up to {step}: gradients are not finite")
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Failed(
                f"{self._skipped_in_a_row} gradients in a row are not finite",
                where=f"step {step}",
                fix="lower optimizer.lr",
            )
