"""Write and remove the files of a checkpoint. This module does not import torch.

COMMITTED is written last, after the files and their hashes are on the disk, and removed first.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import xxhash

from shards.files import make_folder, sync

STATE = "state.safetensors"
TRAINER_STATE = "trainer_state.json"
MANIFEST = "MANIFEST.json"
COMMITTED = "COMMITTED"
BLOCK = 1 << 22
Fingerprint = dict[str, int | str]


def write(folder: Path, state: memoryview, trainer: str) -> None:
    """Write one checkpoint; a crash before its end leaves a folder without COMMITTED.

    Files that are already in the folder (those of DeepSpeed, at stage 3) become part of it.

    Args:
        folder: The folder of the checkpoint.
        state: The bytes of state.safetensors.
        trainer: The text of trainer_state.json.

    Raises:
        OSError: The disk is full, or does not accept the files; the partial folder is removed.
    """
    make_folder(folder)
    try:
        _withdraw(folder)
        written = _write_state(folder / STATE, state)
        (folder / TRAINER_STATE).write_text(trainer)
        commit(folder, {STATE: written})
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def commit(folder: Path, known: Mapping[str, Fingerprint]) -> None:
    """Record the size and hash of every file, then mark the folder as complete.

    The folder above is synced last: after a loss of power the new checkpoint has its name before
    an older one is removed.

    Args:
        folder: The folder of the checkpoint.
        known: The size and hash of files that need not be read again.
    """
    inside = sorted(folder.rglob("*"))
    names = {path.relative_to(folder).as_posix(): path for path in inside if path.is_file()}
    manifest = {name: known.get(name) or fingerprint(path) for name, path in names.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*inside, folder / MANIFEST, folder):
        sync(path)
    (folder / COMMITTED).touch()
    for path in (folder, folder.parent):
        sync(path)


def remove(folder: Path) -> None:
    """Remove a checkpoint. COMMITTED goes first, so that no partly removed folder has it.

    Raises:
        OSError: It cannot be removed.
    """
    _withdraw(folder)
    shutil.rmtree(folder)


def fingerprint(path: Path) -> Fingerprint:
    """Return the size and the hash of a file, as the manifest has them."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _withdraw(folder: Path) -> None:
    if (folder / COMMITTED).exists():
        (folder / COMMITTED).unlink()
        sync(folder)


def _write_state(path: Path, state: memoryview) -> Fingerprint:
    """Write a file and hash its bytes in one pass over them."""
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for start in range(0, len(state), BLOCK):
            block = state[start : start + BLOCK]
            digest.update(block)
            file.write(block)
    return {"bytes": len(state), "xxh3_128": digest.hexdigest()}
