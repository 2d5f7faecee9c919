"""Checkpoints that are complete or ignored: COMMITTED is written last, after files and hashes."""

import dataclasses
import json
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.settings import SettingError, field_types, fit
from pipeline.run import commit
from pipeline.run.commit import COMMITTED, MANIFEST, STATE, TRAINER_STATE, fingerprint
from pipeline.run.progress import Progress as Progress
from pipeline.run.snapshot import Snapshot
from shards.errors import UsageError
from shards.files import leaves_folder, read_json
from shards.format.taxonomy import Taxonomy

_NAME = re.compile(r"step-([0-9]+)-a([0-9]+)")


@dataclass(frozen=True)
class TrainerState:
    """What a checkpoint holds besides tensors.

    Attributes:
        progress: How far the run had progressed.
        order: Identity of the sample order, which must not change.
        world_size: Number of workers.
        zero_stage: ZeRO stage; only stage 3 adds files that DeepSpeed writes.
        taxonomy: The classes of the network.
        versions: Versions of the packages that wrote it.
    """

    progress: Progress
    order: dict[str, Any]
    world_size: int
    zero_stage: int
    taxonomy: Taxonomy
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the content of trainer_state.json."""
        return {
            **dataclasses.asdict(self.progress),
            "order": self.order,
            "world_size": self.world_size,
            "zero_stage": self.zero_stage,
            "taxonomy": self.taxonomy.to_json(),
            "versions": self.versions,
        }

    def to_text(self) -> str:
        """Return the text of trainer_state.json."""
        return json.dumps(self.to_json(), indent=1)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "TrainerState":
        """Rebuild the state from the content of trainer_state.json.

        Raises:
            KeyError: A field is missing.
            SettingError: A field has another type.
        """
        types = field_types(cls)
        plain = {name: fit(document[name], types[name], name)
                 for name in types.keys() - {"progress", "taxonomy"}}  # fmt: skip
        taxonomy = Taxonomy.from_json(document["taxonomy"])
        return cls(Progress.from_json(document), taxonomy=taxonomy, **plain)


def name_of(step: int, attempt: int) -> str:
    """Return the name of a checkpoint's folder.

    The attempt separates the files of a restarted worker from the partial files of a dead one.
    """
    return f"step-{step:09d}-a{attempt:02d}"


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return _step_and_attempt(path)[0]


def folders(checkpoints: Path) -> list[Path]:
    """Return the folders that `save` made, complete or not, sorted by step, then by attempt.

    Everything else is the user's: links, files, and folders whose name `name_of` does not return.
    """
    named = [path for path in checkpoints.glob("step-*") if _is_own(path)]
    return sorted(named, key=_step_and_attempt)


def newest_first(names: Iterable[str]) -> list[str]:
    """Return those names that `name_of` gives, from the highest step and the latest attempt on."""
    own = [Path(name) for name in names if _is_name(name)]
    return [path.name for path in sorted(own, key=_step_and_attempt, reverse=True)]


def last_attempt(checkpoints: Path) -> int:
    """Return the highest attempt in the names of folders, links, and files; 0 without any."""
    named = [path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)]
    return max((_step_and_attempt(path)[1] for path in named), default=0)


def _step_and_attempt(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match, f"{path} is not one of `folders`"
    return int(match[1]), int(match[2])


def _is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and name_of(*_step_and_attempt(Path(name))) == name


def _is_own(path: Path) -> bool:
    return _is_name(path.name) and path.is_dir() and not path.is_symlink()


def save(folder: Path, state: dict[str, Tensor], trainer: TrainerState) -> None:
    """Write one checkpoint in this process; see `commit.write`.

    Raises:
        OSError: The disk is full, or does not accept the files; the partial folder is removed.
    """
    snapshot = Snapshot(state)
    snapshot.fill(state.items())
    with memoryview(snapshot.mapped) as written:
        commit.write(folder, written, trainer.to_text())


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if every byte is as written."""
    if not (folder / COMMITTED).is_file():
        return "not committed"
    try:
        manifest = _manifest(folder)
        wrong = [name for name, kept in manifest.items() if _differs(folder / name, kept)]
        if wrong:
            return f"{wrong[0]} differs from {MANIFEST}"
        step = _read_trainer(folder).progress.step
    except (OSError, ValueError) as error:
        return str(error)
    if _NAME.fullmatch(folder.name) and step_of(folder) != step:
        return f"{TRAINER_STATE} is of step {step}"
    return None


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and hash of every file of a checkpoint.

    Raises:
        ValueError: The manifest does not have the form that `commit` writes.
        OSError: It cannot be read.
    """
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not {STATE, TRAINER_STATE} <= manifest.keys():
        raise ValueError(f"{MANIFEST} does not list {STATE} and {TRAINER_STATE}")
    for name, kept in manifest.items():
        if leaves_folder(name) or not isinstance(kept, dict):
            raise ValueError(f"{MANIFEST} has a wrong entry {name[:80]!r}")
    return manifest


def _differs(path: Path, kept: dict[str, Any]) -> bool:
    """Return whether a file is not the one in the manifest; nothing but its size may be read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != kept.get("bytes"):
        return True
    return fingerprint(path) != kept


def committed(checkpoints: Path) -> list[Path]:
    """Return the folders with COMMITTED, newest first: highest step, then latest attempt."""
    return [path for path in reversed(folders(checkpoints)) if (path / COMMITTED).is_file()]


def newest(checkpoints: Path, report: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint whose bytes are as written; report those that are skipped."""
    for folder in committed(checkpoints):
        problem = damage(folder)
        if problem is None:
            return folder
        report(f"checkpoint {folder.name} is skipped: {problem}")
    return None


def return_before(checkpoints: Path, step: int) -> Path | None:
    """Remove the checkpoints of `step` and later, if an intact one of an earlier step is left.

    Returns:
        The newest intact checkpoint from before `step`; None if there is none.

    Raises:
        OSError: A checkpoint cannot be removed.
    """
    whole = committed(checkpoints)
    earlier = (path for path in whole if step_of(path) < step and damage(path) is None)
    if newest_left := next(earlier, None):
        for path in whole:
            if step_of(path) >= step:
                commit.remove(path)
    return newest_left


def load(folder: Path) -> tuple[dict[str, Tensor], TrainerState]:
    """Return the tensors of a checkpoint by name, and the state of its trainer.

    Raises:
        UsageError: The checkpoint is damaged.
    """
    try:
        return load_file(folder / STATE), _read_trainer(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(folder, str(error)) from error


def load_trainer(folder: Path) -> TrainerState:
    """Return the state of the trainer alone.

    Raises:
        UsageError: The file is damaged.
    """
    try:
        return _read_trainer(folder)
    except (OSError, ValueError) as error:
        raise damaged(folder, str(error)) from error


def _read_trainer(folder: Path) -> TrainerState:
    try:
        return TrainerState.from_json(read_json(folder / TRAINER_STATE))
    except (KeyError, TypeError, SettingError) as error:
        raise ValueError(f"{TRAINER_STATE} has a missing or wrong field: {error}") from error


def damaged(folder: Path, problem: str) -> UsageError:
    """Return the error for a checkpoint whose files are not as they were written."""
    what = f"the checkpoint is damaged ({problem})"
    fix = "restore it, or name another (evaluate, predict, and export take --checkpoint)"
    return UsageError(what, where=folder, fix=fix)
