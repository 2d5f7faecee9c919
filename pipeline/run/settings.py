"""Settings of the guard and of checkpoints. This module does not import torch."""

from dataclasses import dataclass

from model.settings import SettingError, Settings, setting


@dataclass
class GuardSettings(Settings):
    """What happens if numbers go wrong."""

    policy: str = setting(
        "skip",
        "What happens to a step with gradients that are not finite, or whose loss jumps: skip "
        "leaves out updates that are not finite, and only reports jumps; rewind returns to a "
        "checkpoint and leaves out the images since; stop ends the run.",
        choices=("skip", "rewind", "stop"),
    )
    spike: float | None = setting(
        10.0,
        "Distance from which a loss counts as a jump, in robust standard deviations above the "
        "median of up to 50 losses before; null: no loss does.",
        above=0,
    )
    max_skipped: int = setting(
        20, "Skipped steps in a row that end or rewind the run.", unit="steps", at_least=1
    )
    max_rewinds: int = setting(
        3, "Number of rewinds after which the next one ends the run.", at_least=0
    )
    audit_every: int | None = setting(
        None,
        "Interval of the steps in which workers compare their weights and compute a micro-batch of "
        "each other again, which finds machines with wrong numbers; null: never.",
        unit="steps", at_least=1,
    )  # fmt: skip


@dataclass
class CheckpointSettings(Settings):
    """Checkpoints while training."""

    every_minutes: float | None = setting(
        10.0,
        "Longest time between checkpoints; null: every_steps alone. The last step has one, too.",
        unit="minutes",
        above=0,
    )
    every_steps: int | None = setting(
        None, "Interval between checkpoints in steps; null: every_minutes alone.",
        unit="steps", at_least=1,
    )  # fmt: skip
    keep: int = setting(3, "Number of newest checkpoints that are kept.", at_least=1)

    def check(self) -> None:
        """Check that checkpoints are written at all."""
        if self.every_minutes is None and self.every_steps is None:
            raise SettingError(
                "every_minutes",
                "=null with checkpoint.every_steps=null: only the last step would have one",
                "give one of them",
            )
