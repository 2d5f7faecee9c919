"""What a run says: metrics.jsonl, events.jsonl and Weights & Biases. The only import of wandb."""

import contextlib
import json
import math
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from shards.files import whole_file

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


def append(path: Path, row: dict) -> None:
    """Append one JSON line, in one write. A line that a crash has cut short is closed first."""
    with path.open("ab+") as file:
        is_cut = file.tell() > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
        file.write(b"\n" * is_cut + json.dumps(row).encode() + b"\n")


def rows(path: Path) -> list[dict]:
    """The whole lines of a JSONL file; those cut short by a crash are left out."""
    whole = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            whole.append(json.loads(line))
    return whole


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


def truncate(folder: Path, step: int) -> None:
    """Drop metric rows past `step`: a resumed run writes them again."""
    path = folder / METRICS
    kept = [row for row in rows(path) if row["step"] <= step]
    with whole_file(path) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in kept)
