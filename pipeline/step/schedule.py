"""Learning-rate multipliers: pure functions of the step. Source: the reference's schedules."""

from collections.abc import Callable

from pipeline.settings import ScheduleSettings


def lr_multiplier(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
    """The multiplier of step t in [0, steps)."""

    def step(t: int) -> float:
        return settings.factor ** sum(t >= round(m * steps) for m in settings.milestones)

    def poly(t: int) -> float:
        return max(0.0, 1 - t / steps) ** settings.power

    shape = {"step": step, "poly": poly}[settings.name]
    return lambda t: shape(t) * min(1.0, (t + 1) / (settings.warmup_steps + 1))
