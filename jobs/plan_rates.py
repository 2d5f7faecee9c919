"""Which learning rate fits a batch, and whether a config has another one."""

import math
from typing import Any, NamedTuple

from jobs.config import Config, merge
from jobs.preset import BASE, names, preset_path, read_preset
from jobs.values import read_yaml

TOLERANCE = 1.3  # ratio of two learning rates that are as good as equal


class Rate(NamedTuple):
    """The learning rate of a config beside that which a rule proposes.

    Attributes:
        lr: The learning rate.
        batch: Images per step.
        known_lr: The learning rate that is known to work.
        known_batch: The images per step that it is known to work for.
    """

    lr: float
    batch: int
    known_lr: float
    known_batch: int

    @property
    def proposed(self) -> float:
        """The known rate by the rule of the square root.

        AdamW divides gradients by their own size, so that the noise of a smaller batch calls for
        the square root of the ratio (Malladi et al., arXiv 2205.10287).
        """
        return self.known_lr * math.sqrt(self.batch / self.known_batch)

    @property
    def linear(self) -> float:
        """The known rate by the linear rule, which is meant for SGD (arXiv 1706.02677)."""
        return self.known_lr * self.batch / self.known_batch

    @property
    def is_unusual(self) -> bool:
        """Whether the rate is far from the proposed one."""
        ratio = self.lr / self.proposed if self.proposed else 1
        return not 1 / TOLERANCE <= ratio <= TOLERANCE

    @property
    def advice(self) -> str:
        """One sentence for people."""
        known = f"{self.known_lr:g} is known to work for {self.known_batch} images"
        if not self.is_unusual:
            return f"{self.lr:g} for {self.batch} images per step ({known})"
        return (
            f"warning: {self.lr:g} for {self.batch} images per step is unusual: {known}, which is "
            f"{self.proposed:.2g} by the rule of the square root (for AdamW) and {self.linear:.2g} "
            f"by the linear rule; write optimizer.lr={self.proposed:.2g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        rules = {"square_root": self.proposed, "linear": self.linear}
        return {**self._asdict(), **rules, "is_unusual": self.is_unusual, "advice": self.advice}


def rate_of(preset: str, config: Config) -> Rate:
    """Return the learning rate of a config beside the one that is known to work.

    That is the rate of the preset itself, or of the preset that a file of the user extends, or
    the default, which is that of the published runs.
    """
    name = preset if preset in names() else read_yaml(preset_path(preset)).get(BASE)
    known = merge(read_preset(str(name)) if name in names() else {}, [])
    return Rate(config.optimizer.lr, config.batch.size, known.optimizer.lr, known.batch.size)
