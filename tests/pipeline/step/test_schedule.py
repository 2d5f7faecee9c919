"""Learning-rate multipliers at the steps where they change."""

import pytest

from pipeline.step.schedule import ScheduleSettings, lr_multiplier

COCO_STEPS = 368_750


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0), (327_777, 1.0), (327_778, 0.1), (355_091, 0.1), (355_092, 0.01),
        (COCO_STEPS - 1, 0.01),
    ],
)  # fmt: skip
def test_default_drops_at_the_steps_of_coco(step, expected):
    assert lr_multiplier(ScheduleSettings(), COCO_STEPS)(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "drops"), [(655_555, 0), (655_556, 1), (710_183, 1), (710_184, 2)]
)
def test_twice_the_steps_drop_at_twice_the_milestones(step, drops):
    multiplier = lr_multiplier(ScheduleSettings(), 2 * COCO_STEPS)
    assert multiplier(step) == pytest.approx(0.1**drops, rel=1e-12)


def test_milestones_and_factor_are_settings():
    multiplier = lr_multiplier(ScheduleSettings(milestones=[0.5, 0.75], factor=0.5), 8)
    assert [multiplier(t) for t in range(8)] == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_milestones_are_rounded_to_the_nearest_step():
    multiplier = lr_multiplier(ScheduleSettings(milestones=[0.29]), 100)
    assert 0.29 * 100 < 29  # in floating point
    assert [multiplier(t) for t in (28, 29)] == [1.0, 0.1]


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_is_the_power_of_what_is_left(power):
    multiplier = lr_multiplier(ScheduleSettings(name="poly", power=power), 160_000)
    for step in (0, 1, 40_000, 80_000, 159_999):
        assert multiplier(step) == pytest.approx(((160_000 - step) / 160_000) ** power, rel=1e-9)
    assert multiplier(160_000) == multiplier(170_000) == 0


@pytest.mark.parametrize("name", ["step", "poly"])
def test_warm_up_rises_in_a_line_and_then_leaves_the_schedule_alone(name):
    plain = lr_multiplier(ScheduleSettings(name=name), 100)
    warmed = lr_multiplier(ScheduleSettings(name=name, warmup_steps=4), 100)
    rise = [warmed(t) / plain(t) for t in range(6)]
    assert rise == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rel=1e-12)
    assert all(warmed(t) == plain(t) for t in range(4, 100))


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match=r"name=cosine; choose one of step, poly"):
        lr_multiplier(ScheduleSettings(name="cosine"), 10)
