"""Learning-rate multipliers: pure functions of the step. Source: the reference's schedules."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class ScheduleSettings:
    """`step` multiplies by `factor` at each of `milestones` (fractions of all steps);
    `poly` is (1 - t/T)^power. Either is preceded by `warmup_steps` of linear rise."""

    name: str = "step"
    milestones: list[float] = field(default_factory=lambda: [327_778 / 368_750, 355_092 / 368_750])
    factor: float = 0.1
    power: float = 0.9
    warmup_steps: int = 0


def lr_multiplier(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
    """The multiplier of step t in [0, steps). Raises ValueError for an unknown name."""

    def step(t: int) -> float:
        return settings.factor ** sum(t >= round(m * steps) for m in settings.milestones)

    def poly(t: int) -> float:
        return max(0.0, 1 - t / steps) ** settings.power

    shapes = {"step": step, "poly": poly}
    if settings.name not in shapes:
        raise ValueError(f"schedule.name={settings.name}: known are {', '.join(shapes)}")
    shape = shapes[settings.name]
    return lambda t: shape(t) * min(1.0, (t + 1) / (settings.warmup_steps + 1))
