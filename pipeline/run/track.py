"""Metrics of a run, in metrics.jsonl and in Weights & Biases. The only import of wandb."""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.run import eventlog, events
from pipeline.settings import WandbSettings

METRICS = "metrics.jsonl"
FIELDS = {"step": int}
INIT_TIMEOUT_S = 20  # for the first answer of the server
ALERTS = (
    *(events.Warned, events.Failure, events.CheckpointFailed),
    *(events.Damage, events.Quarantined),
)


class Tracker:
    """The metrics of a run. A failure of W&B never stops the run.

    If W&B cannot be reached, or fails later, the metrics continue in an offline W&B run, which
    `wandb sync` sends later; if that fails too, in metrics.jsonl alone. Both are warnings.

    Args:
        folder: The run folder.
        settings: How W&B is used.
        active: Write anything at all: true on rank 0.
        name: Name of the run.
        run_id: Identifier of the run, the same after a restart.
        config: Settings of the run, for W&B.
    """

    def __init__(
        self,
        folder: Path,
        settings: WandbSettings,
        *,
        active: bool,
        name: str,
        run_id: str,
        config: dict[str, Any],
    ):
        self.folder, self.active = folder, active
        self._settings, self._name, self._run_id, self._config = settings, name, run_id, config
        self._mode = settings.mode if active else "disabled"
        self._tail = eventlog.Tail(folder)
        self._run: Any = None
        self._call(lambda run: None)  # opens the run

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row of scalars at `step`.

        JSON has no NaN and no infinity: values that are not finite become null.
        """
        if not self.active:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        eventlog.append_row(self.folder / METRICS, {"step": step, "time": time.time(), **row})
        self._call(lambda run: run.log({"trainer/step": step, **row}))
        self._alert()

    def event(self, event: events.Event) -> None:
        """Append an event."""
        if self.active:
            eventlog.append(self.folder, event)

    def finish(self) -> None:
        """Flush W&B."""
        self._alert()
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:  # as in `_call`
                self._fall_back(error)

    def _alert(self) -> None:
        """Send the new events of all workers that people should know of as W&B alerts."""
        for event in self._tail.read() if self._mode != "disabled" else ():
            if isinstance(event, ALERTS):
                title, text = f"{self._name}: {event.name}", event.describe()
                self._call(lambda run, title=title, text=text: run.alert(title=title, text=text))

    def _call(self, use: Callable[[Any], Any]) -> None:
        """Open the W&B run if necessary and use it; after a failure, do so with an offline run."""
        while self._mode != "disabled":
            try:
                if self._run is None:
                    self._run = self._open()
                use(self._run)
                return
            except Exception as error:  # whatever fails in a tracker is a warning
                self._fall_back(error)

    def _fall_back(self, error: Exception) -> None:
        """Change from online to offline, and from offline to no W&B, with a warning."""
        was_online = self._mode == "online"
        self._run = None
        self._mode = "offline" if was_online else "disabled"
        reason = " ".join(str(error).split())
        kept = "offline; send them with `wandb sync`" if was_online else f"in {METRICS} alone"
        warnings.warn(f"W&B is off: {reason}; metrics are kept {kept}", stacklevel=3)
        if was_online:
            with contextlib.suppress(Exception):
                import wandb

                wandb.teardown()  # W&B's service process still holds the id of the run

    def _open(self) -> Any:
        """Open the run of W&B in the current mode."""
        import wandb

        run = wandb.init(
            project=self._settings.project,
            mode=self._mode,  # pyright: ignore[reportArgumentType]  settings check the value
            id=self._run_id,
            name=self._name,
            resume="allow",
            dir=str(self.folder),
            config=self._config,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                x_transaction_log_flush_interval=1,
            ),
        )
        run.define_metric("trainer/step")
        run.define_metric("*", step_metric="trainer/step")
        return run
