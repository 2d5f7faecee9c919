"""Losses that jump, beside a formula, and what each policy does with a bad step."""

import math
from unittest import mock

import numpy as np
import pytest

from pipeline.run import events
from pipeline.run.guard import LEAST_LOSSES, LOSSES, Final, Guard, distance
from pipeline.run.progress import Progress, Rewinding
from pipeline.run.settings import GuardSettings
from pipeline.step.engine import Update

NOISE = np.random.default_rng(1).normal(30, 3, 200).tolist()


def guard(**settings) -> Guard:
    made = Guard(GuardSettings(**settings), *(mock.MagicMock() for _ in range(4)))
    made._diagnoses.find.return_value = None
    return made


def looked(made: Guard, losses: list[float]) -> list[int]:
    """Show losses to a guard, and return the steps with an event of a jump."""
    for step, loss in enumerate(losses, 1):
        made.updated(Progress(step), Update(applied=True, grad_norm=1.0), mock.MagicMock())
        made.look(loss)
    found = [call.args[0] for call in made._journal.event.call_args_list]
    return [event.step for event in found if isinstance(event, events.Spike)]


def test_the_distance_is_the_robust_z_score():
    before = NOISE[:LOSSES]
    usual, deviations = distance(60.0, before)
    values = np.array(before)
    mad = np.median(np.abs(values - np.median(values)))
    assert usual == np.median(values)
    assert deviations == pytest.approx((60 - np.median(values)) / (1.4826 * mad))
    assert distance(60.0, before[: LEAST_LOSSES - 1])[1] == 0
    assert distance(5.2, [5.0] * LOSSES)[1] == pytest.approx(2)  # in units of 2 % of the median


def test_only_the_first_loss_of_a_jump_is_reported():
    assert looked(guard(), NOISE) == []
    jump = [*NOISE[:60], 90.0, 95.0, *NOISE[60:80], math.nan, 31.0, 90.0]
    assert looked(guard(), jump) == [61, 83, 85]
    assert looked(guard(spike=None), jump) == [83]  # a loss that is not finite is never usual


def test_a_falling_loss_is_no_jump():
    assert looked(guard(), [100 * 0.97**n for n in range(200)]) == []


def test_policy_stop_ends_the_run_at_once():
    bad = Update(applied=False, grad_norm=math.nan)
    with pytest.raises(Final, match="step 7: the gradients are not finite; resume"):
        guard(policy="stop").updated(Progress(7), bad, mock.MagicMock())
    with pytest.raises(Final, match="step 61: the loss jumps to 90"):
        looked(guard(policy="stop"), [*NOISE[:60], 90.0])


def test_skipped_steps_in_a_row_end_the_run():
    made, bad = guard(max_skipped=3), Update(applied=False, grad_norm=math.inf)
    for step, update in enumerate((bad, bad, Update(applied=True, grad_norm=1.0), bad, bad), 1):
        made.updated(Progress(step), update, mock.MagicMock())
    with pytest.raises(Exception, match="step 6: 3 gradients in a row are not finite"):
        made.updated(Progress(6), bad, mock.MagicMock())
    assert made._diagnoses.find.call_count == 2  # the first of each row


def test_a_run_returns_to_a_checkpoint_from_before_the_step_that_made_the_weights():
    """The loss of step 61 is that of the weights after step 60."""
    made = guard(policy="rewind")
    with pytest.raises(Rewinding) as jump:
        looked(made, [*NOISE[:60], 90.0])
    assert made._journal.return_before.call_args.args == (60,)
    assert jump.value.rewind.bad.step == 61
    made, bad = guard(policy="rewind", max_skipped=3), Update(applied=False, grad_norm=math.nan)
    made.updated(Progress(7), bad, mock.MagicMock())
    made.updated(Progress(8), bad, mock.MagicMock())
    with pytest.raises(Rewinding, match="3 gradients are not finite"):
        made.updated(Progress(9), bad, mock.MagicMock())
    assert made._journal.return_before.call_args.args == (6,)


def test_a_run_that_cannot_rewind_ends():
    bad = Update(applied=False, grad_norm=math.nan)
    made = guard(policy="rewind", max_skipped=1, max_rewinds=2)
    with pytest.raises(Final, match=r"step 7: .*, and guard\.max_rewinds=2 is reached; "):
        made.updated(Progress(7, rewinds=2), bad, mock.MagicMock())
    assert not made._journal.return_before.called
    made._journal.return_before.return_value = None
    with pytest.raises(Final, match=r"step 7: .*, and there is no checkpoint from before"):
        made.updated(Progress(7, rewinds=1), bad, mock.MagicMock())


def test_a_resumed_guard_judges_as_if_it_had_not_stopped():
    made, resumed = guard(), guard()
    looked(made, NOISE[:60])
    resumed.resume(made.note(Progress(60)))
    assert looked(resumed, [90.0]) == [1]
