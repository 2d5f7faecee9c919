"""The events of a run whose numbers went wrong."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.run.event import Event


@dataclass(frozen=True, kw_only=True)
class Skipped(Event):
    """An update was skipped because its gradient norm, here as text, is not finite."""

    name: ClassVar = "skipped"
    step: int
    grad_norm: str

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"step {self.step}: the update was skipped, gradient norm {self.grad_norm}"


@dataclass(frozen=True, kw_only=True)
class Spike(Event):
    """The loss has jumped.

    Attributes:
        step: The first step with such a loss; those that follow directly are not recorded.
        loss: The loss of the global batch, as text because it may not be finite.
        usual: Median of the losses before.
        deviations: Distance from the median in robust standard deviations, as text.
    """

    name: ClassVar = "spike"
    step: int
    loss: str
    usual: float
    deviations: str

    def describe(self) -> str:
        """Return one line about this event for people."""
        distance = f"{self.deviations} robust standard deviations above {self.usual:.4g}"
        return f"step {self.step}: the loss jumps to {self.loss}, {distance}"


@dataclass(frozen=True, kw_only=True)
class Audited(Event):
    """An audit has found wrong numbers.

    Attributes:
        step: The step.
        workers: The workers that have them; if that is not known, those that disagree.
        hosts: The machines of these workers.
        first: The first tensor that is wrong.
    """

    name: ClassVar = "audited"
    step: int
    workers: list[int]
    hosts: list[str]
    first: str

    @property
    def problem(self) -> str:
        """One line about the workers."""
        pairs = zip(self.workers, self.hosts, strict=True)
        names = " or ".join(f"worker {worker} ({host})" for worker, host in pairs)
        return f"{names} has wrong numbers, first in {self.first}"

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"step {self.step}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Rewound(Event):
    """The run has returned to an earlier step, and jumps over the samples since.

    Attributes:
        step: The bad step.
        to_step: The step of the checkpoint.
        position: Index of the sample with which training continues in the order of the run.
        samples: Number of samples since the checkpoint, which are left out.
        reason: What is wrong with the bad step.
    """

    name: ClassVar = "rewound"
    step: int
    to_step: int
    position: int
    samples: int
    reason: str

    def describe(self) -> str:
        """Return one line about this event for people."""
        back = f"back to step {self.to_step}, without the {self.samples} images since"
        return f"step {self.step}: {self.reason}; {back}"


@dataclass(frozen=True, kw_only=True)
class Diagnosed(Event):
    """A bad step was replayed to find its cause.

    Attributes:
        step: The step.
        samples: Keys of the images that alone give numbers like those of the step.
        first: The first tensor that is wrong, in words; empty if the replay found none.
        worker: The worker that has this tensor.
        file: Path of the report in the run folder.
    """

    name: ClassVar = "diagnosed"
    step: int
    samples: list[str]
    first: str
    worker: int
    file: str

    def describe(self) -> str:
        """Return one line about this event for people."""
        keys = ", ".join(self.samples) or "no image alone"
        first = f"first in {self.first} (worker {self.worker})" if self.first else (
            "the replay has normal numbers, so that a fault of the machine is likely"
        )  # fmt: skip
        return f"step {self.step}: images: {keys}; {first}; see {self.file}"
