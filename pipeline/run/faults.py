"""Inject faults into a worker on purpose, as `train --allow-faults` asks.

Nothing imports this module without that option. The schedule travels to the workers as an object,
which arms itself there.
"""

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.distributed import all_gather, rank_and_world
from pipeline.run import checkpoint, eventlog, events, fault_actions
from pipeline.run.fault_schedule import (
    AT_ANY_MOMENT,
    BETWEEN_STEPS,
    OF_COMMAND,
    FaultSettings,
    Schedule,
)
from pipeline.run.folder import CHECKPOINTS
from pipeline.step.engine import Engine
from shards import jsonl


class Injector:
    """Injects the faults of one worker, from the time it is entered as a context.

    Args:
        schedule: The faults of all workers.
        folder: The run folder.
        launch: Identifier of the user's command.
        attempt: Number of this start of the run.
        engine: The engine of this worker.
    """

    def __init__(self, schedule: Schedule, folder: Path, launch: str, attempt: int, engine: Engine):
        self._folder, self._launch, self._attempt, self._engine = folder, launch, attempt, engine
        self._rank, _ = rank_and_world()
        history = [event for part in all_gather(eventlog.read(folder)) for event in part]
        self._start = min(e.time for e in history if isinstance(e, events.Start))
        done = {event.fault for event in history if isinstance(event, events.Fault)}
        waiting = {name: fault for name, fault in schedule.faults.items() if name not in done}
        self._waiting = {n: fault for n, fault in waiting.items() if fault.at.rank == self._rank}
        self._due: dict[str, float] = {}  # by `time.time`, of faults whose step has begun
        self._timers: dict[str, threading.Timer] = {}
        self._slow_until, self._slow_s = 0, 0.0
        self._step = 0
        kinds = {fault.kind for fault in schedule.faults.values()}
        self._links = fault_actions.Links() if "link_down" in kinds else None
        if self._rank == 0:
            eventlog.append(folder, events.FaultsArmed(waiting=[*waiting], done=len(done)))

    def __enter__(self) -> "Injector":
        self._begin(0)
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def before_step(self, step: int) -> None:
        """Inject what is due before the forward pass of a step."""
        self._begin(step)
        for name, fault in [*self._waiting.items()]:
            is_due = name in self._due and self._due[name] <= time.time()
            if is_due and fault.kind in BETWEEN_STEPS and fault.kind != "enospc":
                self._inject(name)
        if step < self._slow_until:
            time.sleep(self._slow_s)

    def before_checkpoint(self, step: int) -> None:
        """Inject what is due before the checkpoint of a step is written."""
        for name, fault in [*self._waiting.items()]:
            if fault.kind == "enospc" and self._due.get(name, time.time() + 1) <= time.time():
                self._step = step
                self._inject(name)

    def _begin(self, step: int) -> None:
        """Set the time of each fault whose step has begun."""
        self._step = step
        for name, fault in [*self._waiting.items()]:
            at = fault.at
            if name in self._due or (at.step is not None and at.step > step):
                continue
            since = self._start if at.step is None else time.time()
            self._due[name] = since + (at.after_s or 0)
            if fault.kind in AT_ANY_MOMENT:
                delay = max(0.0, self._due[name] - time.time())
                self._timers[name] = timer = threading.Timer(delay, self._inject, (name,))
                timer.daemon = True
                timer.start()

    def _inject(self, name: str) -> None:
        """Record a fault, and then carry it out, so that a restart does not repeat it."""
        fault = self._waiting.pop(name)
        try:
            act, target = self._action(fault)
            event = events.Fault(
                fault=name,
                kind=fault.kind,
                rank=self._rank,
                launch=self._launch,
                step=self._step,
                target=target,
            )
            jsonl.append(self._folder / eventlog.own_name(), event.to_json())
        except (LookupError, OSError) as error:  # no target, or a disk that refuses the record
            warnings.warn(f"the fault {name!r} is left out: {error}", stacklevel=2)
            return
        act()

    def _action(self, fault: FaultSettings) -> tuple[Callable[[], Any], str]:
        """Return what carries a fault out, and what it strikes.

        Raises:
            LookupError: It has no target.
        """
        actions: dict[str, Callable[[], Any]] = {
            "kill": fault_actions.kill,
            "stop": partial(fault_actions.stop, fault.seconds),
            "hang": fault_actions.hang_on_purpose,
            "nan": self._spoil_gradients,
            "slow": partial(self._slow_down, fault),
        }
        if fault.kind in actions:
            return actions[fault.kind], f"process {os.getpid()}"
        if fault.kind == "link_down":
            assert self._links is not None
            return self._links.shut, f"{self._links.count} connections"
        if fault.kind == "loader_kill":
            process = fault_actions.loader_process()
            return partial(fault_actions.kill, process), f"process {process}"
        checkpoints = self._folder / CHECKPOINTS
        if fault.kind == "truncate":
            path = fault_actions.newest_state(checkpoints)
            return partial(fault_actions.halve, path), path.parent.name
        if fault.kind == "enospc":
            folder = checkpoints / checkpoint.name_of(self._step, self._attempt)
            return partial(fault_actions.refuse_writes, folder), folder.name
        assert fault.kind in OF_COMMAND, fault.kind
        return lambda: None, "the command"

    def _slow_down(self, fault: FaultSettings) -> None:
        self._slow_until, self._slow_s = self._step + fault.steps, fault.seconds

    def _spoil_gradients(self) -> None:
        """Make the gradients of this worker's next micro-batch NaN."""
        backward = self._engine.backward

        def spoiled(loss: Any) -> None:
            with contextlib.suppress(AttributeError):
                del self._engine.backward
            backward(loss * float("nan"))

        self._engine.backward = spoiled
