"""The events of a run as typed records; `eventlog` keeps them in events.jsonl."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

from model.settings import fit
from pipeline.distributed import is_lost_peer
from pipeline.run.event import Event
from pipeline.run.fault_events import Fault as Fault
from pipeline.run.fault_events import FaultsArmed as FaultsArmed
from pipeline.run.guard_events import Audited, Diagnosed, Rewound, Skipped, Spike
from pipeline.run.start_parts import FirstStep as FirstStep  # one of the kinds below
from shards import jsonl
from shards.errors import M2FError, Problem


@dataclass(frozen=True, kw_only=True)
class Start(Event):
    """The workers of a run have started, for the first time or again.

    Attributes:
        attempt: Number of this start in the life of the run, from 1.
        launch: Identifier of the user's command; the restarts of one command share it.
        run_id: Identifier of the run in W&B; empty in the records of older versions.
        folder: The run folder.
        world_size: Number of workers.
        zero_stage: ZeRO stage.
        process_ids: Process id of every worker.
        host: Name of the machine of rank 0.
        hosts: Name of the machine of every rank; empty in the records of older versions.
        device: Device of rank 0.
        threads: Threads of torch on rank 0.
        step: Step of the checkpoint, 0 without one.
        position: Index of the next sample in the order of the run.
        checkpoint: Name of the checkpoint's folder; None if the run starts from scratch.
        last_sign: Time of the last row of metrics before this start; 0 if there is none.
    """

    name: ClassVar = "start"
    attempt: int = 1
    launch: str = ""
    run_id: str = ""
    folder: str = ""
    world_size: int
    zero_stage: int = 0
    process_ids: list[int] = field(default_factory=list)
    host: str = ""
    hosts: list[str] = field(default_factory=list)
    device: str = ""
    threads: int = 0
    step: int
    position: int = 0
    checkpoint: str | None = None
    last_sign: float = 0

    def describe(self) -> str:
        """Return one line about this event for people."""
        origin = f"from {self.checkpoint}" if self.checkpoint else "from scratch"
        workers = f"{self.world_size} workers, ZeRO {self.zero_stage} on {self.device}"
        hosts = list(dict.fromkeys(self.hosts))
        where = f" of {', '.join(hosts)}" if len(hosts) > 1 else ""
        return f"attempt {self.attempt}: {workers}{where}, {origin}"


@dataclass(frozen=True, kw_only=True)
class InitFrom(Event):
    """The network has its initial weights from `model.init_from`, or a file of `model.weights`.

    Attributes:
        key: The setting.
        path: File or folder of the weights.
        text: Summary for people.
        fresh: Parameters that were not found there and start from random values.
        unused: Tensors of the file that the network does not have.
    """

    name: ClassVar = "init_from"
    key: str = "model.init_from"
    path: str
    text: str
    fresh: list[str]
    unused: list[str]

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"{self.key}={self.path}, {self.text}"


@dataclass(frozen=True, kw_only=True)
class Evaluation(Event):
    """The network was scored; the line has every score under its own name.

    Attributes:
        averaged: Whether its weights were a moving average; the line then has it.
    """

    name: ClassVar = "evaluation"
    step: int
    averaged: bool = False
    scores: dict[str, float]

    def to_json(self) -> jsonl.Row:
        """Return the row of this event."""
        weights = {"averaged": True} if self.averaged else {}
        return {"event": self.name, "time": self.time, "step": self.step, **weights, **self.scores}

    @classmethod
    def from_json(cls, row: jsonl.Row) -> Self:
        """Rebuild the event of a row."""
        scores = {name: fit(value, float, name) for name, value in row.items()
                  if name not in ("event", "time", "step", "averaged")}  # fmt: skip
        return super().from_json({**row, "scores": scores})

    def describe(self) -> str:
        """Return one line about this event for people."""
        scores = "  ".join(f"{name} {value:.1f}" for name, value in self.scores.items())
        weights = " (averaged weights)" if self.averaged else ""
        return f"step {self.step}{weights}: {scores}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Event):
    """A checkpoint was written; the line has the name of its folder under "name".

    In this and in the last event of a start, `seconds` has the time of each phase of rank 0 since
    that start; here up to the copy of the state, because a resumed run repeats what follows it.
    """

    name: ClassVar = "checkpoint"
    step: int
    position: int
    folder: str
    seconds: dict[str, float] = field(default_factory=dict)
    stall_s: float = 0  # for which training waited
    write_s: float = 0
    suggested_minutes: float | None = None  # None if training waited for the whole write

    def to_json(self) -> jsonl.Row:
        """Return the row of this event."""
        row = super().to_json()
        return row | {"name": row.pop("folder")}

    @classmethod
    def from_json(cls, row: jsonl.Row) -> Self:
        """Rebuild the event of a row."""
        return super().from_json({**row, "folder": row["name"]})

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"step {self.step}: saved {self.folder}"


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event):
    """A checkpoint could not be written; training continues without it."""

    name: ClassVar = "checkpoint_failed"
    step: int
    error: str

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"step {self.step}: no checkpoint was written ({self.error}); training continues"


@dataclass(frozen=True, kw_only=True)
class Damage(Event):
    """A checkpoint or lines of a record were skipped because they are not as written."""

    name: ClassVar = "damage"
    text: str

    def describe(self) -> str:
        """Return one line about this event for people."""
        return self.text


@dataclass(frozen=True, kw_only=True)
class Quarantined(Event):
    """Damaged samples were found and replaced; `samples` are their keys."""

    name: ClassVar = "quarantined"
    step: int
    samples: list[str]

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"step {self.step}: damaged samples were replaced: {', '.join(self.samples)}"


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """A worker called `warnings.warn`.

    Attributes:
        rank: The worker.
        category: Class of the warning.
        text: Its text.
    """

    name: ClassVar = "warning"
    rank: int
    category: str
    text: str

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"warning (worker {self.rank}): {self.text}"


@dataclass(frozen=True, kw_only=True)
class Failure(Event):
    """A worker raised an error. The parts of the error are kept, so that it can be rebuilt.

    Attributes:
        launch: Identifier of the user's command.
        rank: The worker.
        kind: Class of the error.
        text: The whole error as text.
        what: What is wrong.
        where: The file or setting that it concerns; may be empty.
        fix: What the user can do; may be empty.
        exit_code: Exit code of the command for this error.
        lost_peer: Whether the error only says that another worker is gone.
    """

    name: ClassVar = "failure"
    launch: str
    rank: int
    kind: str
    text: str
    what: str = ""
    where: str = ""
    fix: str = ""
    exit_code: int = 1
    lost_peer: bool = False

    @classmethod
    def of(cls, error: Exception, *, launch: str, rank: int) -> Self:
        """Return the event of an error on a rank."""
        is_ours = isinstance(error, M2FError)
        problem = error.problem if is_ours else Problem(f"{type(error).__name__}: {error}")
        return cls(
            launch=launch,
            rank=rank,
            kind=type(error).__name__,
            text=str(error).strip(),
            exit_code=error.exit_code if is_ours else 1,
            lost_peer=is_lost_peer(error),
            **dataclasses.asdict(problem),
        )

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"worker {self.rank} failed: {self.kind}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Finish(Event):
    """The run has taken all its steps."""

    name: ClassVar = "finish"
    step: int
    position: int
    seconds: dict[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Return one line about this event for people."""
        return f"step {self.step}: finished"


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The run was asked to stop, and has taken this number of steps."""

    name: ClassVar = "stopped"
    step: int
    position: int
    seconds: dict[str, float] = field(default_factory=dict)
    workers: int | None = None  # that take over; None if nobody does

    def describe(self) -> str:
        """Return one line about this event for people."""
        others = f"{self.workers} workers fit, and take over"
        return f"step {self.step}: {others if self.workers else 'stopped on request'}"


OF_GUARD = (Skipped, Spike, Diagnosed, Rewound, Audited)
KINDS: tuple[type[Event], ...] = tuple(Event.__subclasses__())
KIND_OF_NAME = {kind.name: kind for kind in KINDS}
