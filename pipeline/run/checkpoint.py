"""Checkpoints that are whole or not there: files, then their hashes, then COMMITTED."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.errors import UsageError
from shards.files import sync

STATE = "state.safetensors"
TRAINER_STATE = "trainer_state.json"
MANIFEST = "MANIFEST.json"
COMMITTED = "COMMITTED"


@dataclass
class CheckpointSettings:
    """Save every `every_steps` optimizer steps and at the end; keep the newest `keep`."""

    every_steps: int = 1000
    keep: int = 3


def name_of(step: int, attempt: int) -> str:
    """Folder name. The attempt keeps a restarted worker out of a dead one's half-written files."""
    return f"step-{step:09d}-a{attempt:02d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's folder name."""
    return int(path.name.split("-")[1])


def save(folder: Path, state: dict[str, Tensor], trainer_state: dict) -> None:
    """Write one checkpoint; a crash at any point leaves a folder without COMMITTED.

    What stands in the folder already (DeepSpeed's shards, at stage 3) becomes part of it.

    On an OSError (a full disk) the partial folder is removed and the error raised again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _save_state(state, folder / STATE)
        (folder / TRAINER_STATE).write_text(json.dumps(trainer_state, indent=1))
        commit(folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _save_state(state: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(state, path)
        path.chmod(0o644)  # safetensors keeps it to the owner; a run folder is shared
    except SafetensorError as error:  # a failed write is no OSError to safetensors
        raise OSError(f"{path}: {error}") from error


def commit(folder: Path) -> None:
    """Record size and hash of every file, then mark the folder as whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*files, folder / MANIFEST, folder):
        sync(path)
    (folder / COMMITTED).touch()
    sync(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every byte is as written."""
    if not (folder / COMMITTED).exists():
        return "not committed"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        wrong = [name for name, seen in manifest.items() if _fingerprint(folder / name) != seen]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{wrong[0]} differs from {MANIFEST}" if wrong else None


def committed(checkpoints: Path) -> list[Path]:
    """Folders that carry COMMITTED, newest first (highest step, then latest attempt)."""
    return sorted((path.parent for path in checkpoints.glob(f"step-*/{COMMITTED}")), reverse=True)


def newest(checkpoints: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; what is passed over is reported."""
    for folder in committed(checkpoints):
        problem = damage(folder)
        if problem is None:
            return folder
        report(f"checkpoint {folder.name} is passed over: {problem}")
    return None


def load(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors by name and the trainer's state. Raises UsageError if the folder is damaged."""
    try:
        return load_file(folder / STATE), json.loads((folder / TRAINER_STATE).read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{folder} is damaged ({error}); name another with --checkpoint"
        ) from error


def load_trainer(folder: Path) -> dict:
    """The trainer's state alone."""
    return json.loads((folder / TRAINER_STATE).read_text())


def prune(checkpoints: Path, step: int, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints up to `step` and the one at step `best`.

    COMMITTED goes first, so a crash half-way leaves nothing that looks whole. Folders that were
    never committed are left-overs of a crash, older than the checkpoint just written, at `step`.
    Whole ones past it were passed over as damaged: they are left alone and do not count.
    """
    whole = committed(checkpoints)
    past = [folder for folder in whole if step_of(folder) > step]
    kept = whole[: len(past) + keep]
    for folder in checkpoints.glob("step-*"):
        if folder not in kept and step_of(folder) != best:
            (folder / COMMITTED).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _fingerprint(path: Path) -> dict[str, int | str]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}
