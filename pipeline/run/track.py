"""What a run says: metrics.jsonl, events.jsonl and Weights & Biases. The only import of wandb."""

import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from shards.jsonl import append

METRICS = "metrics.jsonl"
EVENTS = "events.jsonl"


@dataclass
class WandbSettings:
    """`mode`: offline | online | disabled."""

    mode: str = "offline"
    project: str = "mask2former"


@dataclass
class TrackingSettings:
    """Where a run is watched."""

    wandb: WandbSettings = field(default_factory=WandbSettings)


class Tracker:
    """Metrics and events of a run. W&B can fail without harm to the run.

    Only an `active` tracker writes: rank 0 has one, the other ranks' are silent.
    """

    def __init__(
        self,
        folder: Path,
        settings: WandbSettings,
        *,
        active: bool,
        name: str,
        run_id: str,
        config: dict,
    ):
        self.folder, self.active = folder, active
        self._run = None
        if not active or settings.mode == "disabled":
            return
        try:
            import wandb

            self._run = wandb.init(
                project=settings.project,
                mode=settings.mode,
                id=run_id,
                name=name,
                resume="allow",
                dir=str(folder),
                config=config,
                settings=wandb.Settings(
                    console="off", silent=True, init_timeout=60, x_transaction_log_flush_interval=1
                ),
            )
            self._run.define_metric("trainer/step")
            self._run.define_metric("*", step_metric="trainer/step")
        except Exception as error:  # any failure of a tracker is a warning
            self._give_up(error)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One row of scalars at `step`; JSON has no NaN, so what is not finite is null."""
        if not self.active:
            return
        values = {name: value if math.isfinite(value) else None for name, value in values.items()}
        append(self.folder / METRICS, {"step": step, "time": time.time(), **values})
        self._log({"trainer/step": step, **values})

    def event(self, name: str, /, **fields) -> None:
        """Something that happened: a start, a checkpoint, an evaluation, the end."""
        if self.active:
            append(self.folder / EVENTS, {"event": name, "time": time.time(), **fields})

    def finish(self) -> None:
        """Flush W&B."""
        if self._run:
            try:
                self._run.finish()
            except Exception as error:
                self._give_up(error)

    def _log(self, values: dict) -> None:
        if self._run:
            try:
                self._run.log(values)
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        warnings.warn(f"W&B is off for this run: {error}", stacklevel=2)
