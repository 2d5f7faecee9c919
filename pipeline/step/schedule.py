"""Learning-rate multipliers as pure functions of the step, as in the paper's code."""

from collections.abc import Callable

from pipeline.settings import ScheduleSettings


def lr_multiplier(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
    """Return the function from a step in [0, steps) to its multiplier."""

    def step(t: int) -> float:
        return settings.factor ** sum(t >= round(m * steps) for m in settings.milestones)

    def poly(t: int) -> float:
        return max(0.0, 1 - t / steps) ** settings.power

    shape = {"step": step, "poly": poly}[settings.name]
    return lambda t: shape(t) * min(1.0, (t + 1) / (settings.warmup_steps + 1))
