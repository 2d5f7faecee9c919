"""How far a run has progressed: what a checkpoint has to hold besides tensors to continue it."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

from model.settings import field_types, fit


@dataclass(frozen=True)
class Watched:
    """What the guard knows of the steps before, so that a resumed run judges as it would have.

    Attributes:
        losses: The last losses that were finite, the newest last.
        jumped: Whether the last loss was a jump.
        skipped_in_a_row: Number of steps up to the last one that were skipped.
    """

    losses: tuple[float, ...] = ()
    jumped: bool = False
    skipped_in_a_row: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a run has progressed.

    Attributes:
        step: Optimizer steps taken.
        position: Index of the next sample in the order of the run.
        updates: Steps whose update was applied; the others had a gradient that is not finite.
        rewinds: Number of returns to an earlier step, each of which jumped over samples.
        watched: What the guard knows; two runs with equal progress may differ in it by rounding.
    """

    step: int = 0
    position: int = 0
    updates: int = 0
    rewinds: int = 0
    watched: Watched = field(default=Watched(), compare=False)

    def after_step(self, images: int, applied: bool) -> "Progress":
        """Return the progress after one more step on `images` samples."""
        return dataclasses.replace(
            self,
            step=self.step + 1,
            position=self.position + images,
            updates=self.updates + applied,
        )

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Rebuild the progress from the content of trainer_state.json.

        Raises:
            KeyError: A field is missing that checkpoints have always had.
            SettingError: A field has another type.
        """
        known = {"rewinds": 0, **document}
        numbers = {name: fit(known[name], int, name)
                   for name in ("step", "position", "updates", "rewinds")}  # fmt: skip
        types = field_types(Watched)
        watched = fit(document.get("watched", {}), dict[str, Any], "watched")
        fields = {name: fit(value, types[name], name) for name, value in watched.items()}
        return cls(**numbers, watched=Watched(**fields))


@dataclass(frozen=True)
class Rewind:
    """The return to a checkpoint from before a bad step.

    Attributes:
        bad: The progress after the bad step, with whose position training continues.
        reason: What is wrong with the step.
    """

    bad: Progress
    reason: str


class Rewinding(Exception):
    """The run returns to an earlier checkpoint. All ranks raise it together."""

    def __init__(self, rewind: Rewind):
        super().__init__(rewind.reason)
        self.rewind = rewind
