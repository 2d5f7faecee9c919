"""Open the folder of a run: start the run, resume it, or say why it cannot be trained."""

import platform
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from jobs import config as configs
from jobs.config import Config
from pipeline.data.store import Store
from pipeline.run import checkpoint, eventlog, events
from pipeline.run.folder import CHECKPOINTS, CONFIG, check_files, detach_records
from pipeline.step.schedule import lr_multiplier
from shards.errors import UsageError
from shards.files import disk_errors, write_json

MAY_CHANGE = (
    *("name", "runs", "trainer.steps", "trainer.log_every", "tracking.", "scaling.", "failure."),
    *("checkpoint.", "evaluation.", "guard.", "batch.micro", "zero."),
    "batch.measured_on",
    *("model.checkpoint_activations", "model.compile"),
    *("data.loader_workers", "data.cache.", "data.max_damaged"),
    *("data.stall_timeout_s", "trainer.hang_timeout_s"),
    *("data.train", "data.val"),  # the fingerprints of the sets are compared instead
)
OTHER_NAME = "name another run: name=NAME"
# What a folder may hold before its first config.yaml: a command can be killed while it starts.
_STARTED = re.compile(r"\.lock|lease\.json|(config\.yaml|environment\.json)\.tmp-\d+")


Newest = Callable[[Callable[[str], None]], Path | None]


def open_run(
    folder: Path,
    config: Config,
    stores: tuple[list[Store], Store],
    newest: Newest | None = None,
) -> bool:
    """Compare the config with that of an existing run, if there is one, and write it.

    Args:
        folder: The run folder, which this process has locked.
        config: The config that is asked for.
        stores: The training sets and the validation set.
        newest: Returns the newest whole checkpoint, and reports those that are skipped. By
            default, that in the folder.

    Returns:
        False if the run is finished.

    Raises:
        UsageError: The run was started with other settings, shards, or classes, its checkpoints are
            damaged, it has taken more steps, or the folder is not a run.
    """
    train, val = stores
    fingerprints = [store.manifest.fingerprint for store in train]
    data = {"train": fingerprints, "val": val.manifest.fingerprint}
    check_new(folder)
    check_files(folder)
    if (folder / CONFIG).exists():
        before = configs.load_run(folder)
        _check_classes(folder, [*train, val])
        _check_same(folder, before, config, data)
        newest = newest or partial(checkpoint.newest, folder / CHECKPOINTS)
        if not _resumes(folder, before, config, newest):
            return False
    with disk_errors(folder):
        detach_records(folder)
        configs.save(config, folder / CONFIG)  # first: it marks the folder as a run
        write_json(folder / configs.ENVIRONMENT, {
            "data": data,
            "host": platform.node(),
            "python": platform.python_version(),
            "packages": {d.name: d.version for d in distributions()},
        })  # fmt: skip
    return True


def check_new(folder: Path) -> None:
    """Check that a folder without config.yaml holds only what a killed command left at its start.

    Older versions wrote environment.json before config.yaml.

    Raises:
        UsageError: It holds something else.
    """
    if (folder / CONFIG).exists() or not folder.is_dir():
        return
    found = {path.name for path in folder.iterdir() if not _STARTED.fullmatch(path.name)}
    if {CHECKPOINTS, eventlog.EVENTS} & found:
        raise UsageError(
            "the settings of the run are missing",
            where=folder / CONFIG,
            fix=f"restore the file, or {OTHER_NAME}",
        )
    if found == {configs.ENVIRONMENT}:
        configs.load_environment(folder)
    elif found:
        raise UsageError("the folder exists and is not a run", where=folder, fix=OTHER_NAME)


def _check_classes(folder: Path, stores: list[Store]) -> None:
    """Check that the shard sets have the classes of the run's newest checkpoint, in their order.

    A set that another version built can have the same shards' names, but another order of classes.
    """
    for path in checkpoint.committed(folder / CHECKPOINTS):
        try:
            trained = checkpoint.load_trainer(path).taxonomy
        except UsageError:  # a damaged checkpoint is reported later
            continue
        for store in stores:
            if difference := trained.difference(store.manifest.taxonomy):
                raise UsageError(
                    f"the run and {store.location} have different classes: {difference}",
                    where=folder,
                    fix="give the shards of the run's start, or start another run from its weights "
                    f"(name=NAME model.init_from={folder.name}), which matches classes by name",
                )
        return


def _check_same(folder: Path, before: Config, config: Config, data: dict[str, Any]) -> None:
    """Check that an existing run has the same shards, and the same settings except MAY_CHANGE.

    At stage 3 neither the number of workers nor the stage may change, because DeepSpeed's sharded
    checkpoints fit only the workers that wrote them. The size of a micro-batch may not change if
    the losses or the norms depend on it.
    """
    is_sharded = 3 in (before.zero.stage, config.zero.stage)
    fixed = {"scaling.", "zero."} if is_sharded else set()
    if config.depends_on_micro_batches:
        fixed.add("batch.micro")
    may_change = tuple(key for key in MAY_CHANGE if key not in fixed)
    changed = configs.differences(before, config, may_change)
    try:
        known = configs.load_environment(folder)["data"]
    except UsageError as error:  # checkpoints tell whether the training sets are the same
        print(f"{error.problem.where}: {error.problem.what}; it is written again")
        known = {}
    changed += [f"the shards of data.{key}" for key in known if known[key] != data[key]]
    if changed:
        raise UsageError(
            f"the run was started with other settings or shards ({'; '.join(changed)})",
            where=folder,
            fix="give those of the run's start, or another name=NAME",
        )


def _resumes(folder: Path, before: Config, config: Config, find: Newest) -> bool:
    """Say at which step an existing run is resumed; return False if it is finished.

    Raises:
        UsageError: There is no intact checkpoint although there should be one, or the run has taken
            more steps than it is asked for.
    """
    damaged: list[str] = []
    newest = find(damaged.append)
    saved = checkpoint.step_of(newest) if newest else 0
    history = eventlog.read(folder)
    ends = [event for event in history if isinstance(event, events.Start | events.Finish)]
    finished = max((event.step for event in ends if isinstance(event, events.Finish)), default=0)
    steps = config.trainer.steps
    if steps < max(saved, finished):
        raise UsageError(
            f"trainer.steps={steps} is less than the {max(saved, finished)} steps that were taken",
            where=folder,
            fix="give at least as many, or another name=NAME",
        )
    if newest is None and (damaged or finished):
        raise UsageError(
            f"no checkpoint is intact ({'; '.join(damaged) or 'all are missing'})",
            where=folder / CHECKPOINTS,
            fix="restore one, or train again under another name=NAME",
        )
    has_ended = bool(ends) and isinstance(ends[-1], events.Finish)  # not started again since
    if has_ended and min(finished, saved) >= steps:
        print(f"{folder} is finished ({saved} steps); to continue, raise trainer.steps")
        return False
    skipped = f" ({'; '.join(damaged)})" if damaged else ""
    if saved < finished:
        skipped += f"; the checkpoint of the finished run, step {finished}, is not intact"
    if newest:
        print(f"{folder}: resuming from the checkpoint of step {saved}{skipped}")
        _say_other_rates(folder, before, config, saved)
    else:
        print(f"{folder}: starting from scratch, because the run has no checkpoint yet")
    return True


def _say_other_rates(folder: Path, before: Config, config: Config, step: int) -> None:
    """Say if another number of steps changes the learning rate where the run is resumed."""
    old, new = before.trainer.steps, config.trainer.steps
    step = min(step, old - 1)  # the schedule of a finished run ends there
    was = config.optimizer.lr * lr_multiplier(before.schedule, old)(step)
    now = config.optimizer.lr * lr_multiplier(config.schedule, new)(step)
    if was != now:
        print(
            f"{folder}: the schedule now spans {new} instead of {old} steps: the learning rate "
            f"after step {step} is {now:.3g} instead of {was:.3g}"
        )
