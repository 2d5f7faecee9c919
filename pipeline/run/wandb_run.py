"""A run of Weights & Biases, which follows the records of the run folder.

Everything that talks to W&B happens in one thread, because W&B can wait for its server: an outage,
a wrong key, or a full disk delays or ends this thread, and never training.
"""

import contextlib
import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.run import wandb_log
from pipeline.run.location import location_of
from pipeline.run.phases import Phases
from pipeline.run.wandb_media import Media, artifact, values_of
from pipeline.settings import WandbSettings
from shards.format.manifest import MANIFEST
from shards.jsonl import Row

INIT_TIMEOUT_S = 20  # for the first answer of the server
FINISH_TIMEOUT_S = 20  # for the last rows; a scheduler kills a job soon after its warning
CLOSE_S = 2 * FINISH_TIMEOUT_S
STALL_S = 15 * 60  # without a step or an evaluated image, an alert is due
WATCH_S = 5
STEP = "trainer/step"
TRAINER = ("position", "interval_s", "world_size", "attempt", "damaged_samples", "skipped_steps")
SPEED = ("step_s", "data_wait_s", "data_wait_worker", "images_per_s", "images_per_s_per_worker")

T = TypeVar("T")


def section(name: str) -> str:
    """Return the name of a metric in W&B, where the part before "/" is a section of charts.

    The losses of the last decoder layer are in `train`, those of the others in `layers`.
    """
    if "/" in name:
        return name
    if name in TRAINER:
        return f"trainer/{name}"
    if name in SPEED:
        return f"speed/{name}"
    is_layer = name.startswith("loss_") and name.rpartition("_")[2].isdecimal()
    return f"layers/{name}" if is_layer else f"train/{name}"


class WandbRun:
    """A run of W&B. If it fails online it continues offline, and then not at all, with warnings.

    A step of the run is a step of W&B, which refuses steps before its last one. So each step is
    there once, although a run that was killed repeats the steps since its checkpoint: the values
    that W&B has stay, and those that it lacks are sent from metrics.jsonl. The newest row waits
    until a later one follows, because an evaluation adds its scores to the row of its step.

    Args:
        folder: The run folder.
        settings: How W&B is used; its mode is not "disabled".
        name: Name of the run.
        run_id: Identifier of the run, the same after a restart.
        config: Settings of the run.
        kept: The name of the file that has the metrics if W&B has not, for warnings.
    """

    def __init__(
        self,
        folder: Path,
        settings: WandbSettings,
        *,
        name: str,
        run_id: str,
        config: dict[str, Any],
        kept: str,
    ):
        self._folder, self._name, self._run_id, self._config = folder, name, run_id, config
        self._project, self._mode, self._kept = settings.project, settings.mode, kept
        self._run: Any = None
        self._next = 0  # the first step that W&B lacks
        self._pending: tuple[int, dict[str, Any]] | None = None  # the newest row
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._phases: Phases | None = None
        self._stalled_since = -math.inf  # of the last alert
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def open(self, rows: Iterable[Row], phases: Phases) -> None:
        """Open the run, and send those of the earlier rows of metrics.jsonl that W&B lacks.

        Args:
            rows: The rows up to the step from which the run resumes.
            phases: The phases of this worker; an alert follows if it makes no progress for long.
        """
        self._phases = phases
        self._tasks.put(lambda: self._call(lambda run: None))
        for row in rows:
            self.row(row["step"], {k: v for k, v in row.items() if k not in ("step", "time")})

    def row(self, step: int, values: Mapping[str, Any], media: Media | None = None) -> None:
        """Add values and media at a step, which is not before the last one."""
        self._tasks.put(partial(self._add, step, dict(values), media))

    def alert(self, title: str, text: str) -> None:
        """Send an alert to the people who follow the run."""
        title = f"{self._name}: {title}"
        self._tasks.put(lambda: self._call(lambda run: run.alert(title=title, text=text)))

    def add_checkpoint(self, path: Path, facts: Mapping[str, Any], aliases: list[str]) -> None:
        """Record a complete checkpoint by reference."""

        def add(run: Any) -> None:
            found = artifact(f"{self._run_id}-checkpoint", "model", location_of(path), facts)
            run.log_artifact(found, aliases=aliases)

        self._tasks.put(partial(self._try, f"the checkpoint {path.name}", add))

    def use_data(self, fingerprint: str, location: str) -> None:
        """Record by reference that the run reads a shard set.

        W&B waits until its server has the artifact, so this happens in a thread of its own. It
        needs a server: nothing is recorded offline.
        """

        def use(run: Any) -> None:
            name, manifest = f"data-{fingerprint[:16]}", f"{location}/{MANIFEST}"
            run.use_artifact(artifact(name, "dataset", manifest, {"location": location}))

        def start() -> None:
            if self._mode == "online":
                what = f"the data set {location}"
                threading.Thread(target=self._try, args=(what, use), daemon=True).start()

        self._tasks.put(start)

    def close(self, exit_code: int, before: int | None = None) -> None:
        """Send the last rows and end; wait for it for a limited time.

        Args:
            exit_code: The state of the run in W&B; 0 is good.
            before: Leave out the row of this step, whose scores a resumed run may add.
        """
        self._tasks.put(partial(self._end, exit_code, before))
        self._tasks.put(None)
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=WATCH_S)
            except queue.Empty:
                self._alert_of_a_stall()
                continue
            if task is None:
                return
            task()

    def _alert_of_a_stall(self) -> None:
        since = self._phases.since if self._phases is not None else math.inf
        if time.monotonic() - since > STALL_S and since != self._stalled_since:
            self._stalled_since = since
            self.alert("stalled", f"no step and no evaluated image for {STALL_S // 60} minutes")

    def _add(self, step: int, values: dict[str, Any], media: Media | None) -> None:
        if self._pending is not None and step > self._pending[0]:
            self._send_pending()
        if self._pending is None:
            self._pending = step, {}
        self._pending[1].update({section(name): value for name, value in values.items()})
        if media is not None and step >= self._next:
            what = f"the pictures and classes of step {step}"
            self._pending[1].update(self._try(what, lambda run: values_of(media)) or {})

    def _send_pending(self) -> None:
        assert self._pending is not None
        step, values = self._pending
        self._pending = None
        if step >= self._next:
            self._call(lambda run: run.log({STEP: step, **values}, step=step, commit=True))
            self._next = step + 1

    def _try(self, what: str, use: Callable[[Any], T]) -> T | None:
        """Use the run for an extra; if that fails, the run continues without it, with a warning."""
        try:
            return use(self._run) if self._run is not None else None
        except Exception as error:  # whatever fails is a warning
            warnings.warn(f"W&B lacks {what}: {_one_line(error)}", stacklevel=2)

    def _call(self, use: Callable[[Any], Any]) -> None:
        """Open the W&B run if necessary and use it; after a failure, do so with an offline run."""
        while self._mode != "disabled":
            try:
                if self._run is None:
                    self._run = self._open()
                use(self._run)
                return
            except Exception as error:  # whatever fails is a warning
                self._fall_back(error)

    def _end(self, exit_code: int, before: int | None) -> None:
        if self._pending is not None and (before is None or self._pending[0] < before):
            self._send_pending()
        if self._run is not None:
            try:
                self._run.finish(exit_code=exit_code)
            except Exception as error:  # as in `_call`
                self._fall_back(error)

    def _fall_back(self, error: Exception) -> None:
        """Change from online to offline, and from offline to no W&B, with a warning."""
        was_online = self._mode == "online"
        self._run = None
        self._mode = "offline" if was_online else "disabled"
        kept = "offline; send them with `wandb sync`" if was_online else f"in {self._kept} alone"
        warnings.warn(f"W&B is off: {_one_line(error)}; metrics are kept {kept}", stacklevel=3)
        if was_online:
            with contextlib.suppress(Exception):
                import wandb

                wandb.teardown()  # W&B's service process still holds the id of the run

    def _open(self) -> Any:
        """Open the run of W&B in the current mode."""
        import wandb

        run = wandb.init(
            project=self._project,
            mode=self._mode,  # pyright: ignore[reportArgumentType]  settings check the value
            id=self._run_id,
            name=self._name,
            resume="allow",
            dir=str(self._folder),
            config=self._config,
            allow_val_change=True,
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                x_transaction_log_flush_interval=1,
            ),
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        if self._mode == "online":  # the server knows what it has
            self._next = max(self._next, run.starting_step)
        else:
            self._next = max(self._next, wandb_log.last_step(self._folder, self._run_id) + 1)
        return run


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
