"""Metrics and events of a run, in its folder and in Weights & Biases."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.run import eventlog, events
from pipeline.run.phases import Phases
from pipeline.run.wandb_media import Media
from pipeline.run.wandb_run import WandbRun
from pipeline.settings import WandbSettings
from shards.jsonl import rows

METRICS = "metrics.jsonl"
FIELDS = {"step": int}
ALERTS = (
    *(events.Warned, events.Failure, events.CheckpointFailed),
    *(events.Damage, events.Quarantined, *events.OF_GUARD[1:]),
)
_LOGIN_OR_QUERY = re.compile(r"(?<=://)[^/@\s]*@|[?#]\S*$")


class Tracker:
    """The metrics of a run.

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
        self._tail = eventlog.Tail(folder)
        self._wandb: WandbRun | None = None
        if active and settings.mode != "disabled":
            config = without_secrets(config)
            self._wandb = WandbRun(
                folder, settings, name=name, run_id=run_id, config=config, kept=METRICS
            )

    def open(self, step: int, data: Mapping[str, str], phases: Phases) -> None:
        """Open the run of W&B, give it the metrics up to `step` that it lacks, and name the data.

        Args:
            step: The step from which the run resumes.
            data: The fingerprint of each shard set by its location.
            phases: The phases of this worker, which tell whether it makes progress.
        """
        if self._wandb is None:
            return
        known = rows(self.folder / METRICS, FIELDS)
        self._wandb.open([row for row in known if row["step"] <= step], phases)
        for location, fingerprint in data.items():
            self._wandb.use_data(fingerprint, without_secrets(location))

    def metrics(self, step: int, values: Mapping[str, float], media: Media | None = None) -> None:
        """Append one row of scalars at `step`; `media` is for W&B alone.

        JSON has no NaN and no infinity: values that are not finite become null.
        """
        if not self.active:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        eventlog.append_row(self.folder / METRICS, {"step": step, "time": time.time(), **row})
        if self._wandb is not None:
            self._wandb.row(step, row, media)
            self._alert()

    def event(self, event: events.Event) -> None:
        """Append an event."""
        if self.active:
            eventlog.append(self.folder, event)

    def alert(self, title: str, text: str) -> None:
        """Send an alert to the people who follow the run in W&B."""
        if self._wandb is not None:
            self._wandb.alert(title, text)

    def checkpoint(self, path: Path, step: int, scores: Mapping[str, float], best: bool) -> None:
        """Record a checkpoint in W&B, by reference.

        Args:
            path: The checkpoint, which is complete.
            step: Its step.
            scores: Its scores.
            best: Whether no other checkpoint has a better score.
        """
        if self._wandb is not None:
            aliases = [f"step-{step}", *["best"] * best]
            self._wandb.add_checkpoint(path, {"step": step, **scores}, aliases)

    def finish(self, before: int | None = None, error: str = "") -> None:
        """Flush W&B, and end its run.

        Args:
            before: Leave out the row of this step; a resumed run sends it with its scores.
            error: Why the run failed; empty if it did not.
        """
        if self._wandb is not None:
            self._alert()
            if error:
                self.alert("failure", error)
            self._wandb.close(int(bool(error)), before)

    def _alert(self) -> None:
        """Send the new events of all workers that people should know of as W&B alerts."""
        for event in self._tail.read():
            is_restart = isinstance(event, events.Start) and event.attempt > 1
            if isinstance(event, ALERTS) or is_restart:
                self.alert(event.name, event.describe())


def without_secrets(value: Any) -> Any:
    """Return plain data in which no URL has a login or a query, which can hold keys."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_secrets(item) for item in value]
    is_url = isinstance(value, str) and "://" in value
    return _LOGIN_OR_QUERY.sub("", value) if is_url else value
