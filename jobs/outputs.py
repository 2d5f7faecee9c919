"""Output folders and files: a command never writes over what it did not make."""

import contextlib
import glob
import os
import platform
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from shards.errors import UsageError
from shards.files import LONGEST_START, disk_errors, make_folder, read_json, sha256, write_json

MARK = ".mask2former.json"
_HEAD = 4096  # bytes at the start of a file within which its signature is


class OutputFolder:
    """A folder for the results of one command, which knows its own files by a mark.

    The mark names the command and its files. It is written before the first result, with
    `complete: false`, and again after the last one, with the hash of each file. The next call of
    the command removes the files that are as they were written, so that the results of two calls
    never mix, except for those that it says are still good, and refuses to write over any other.

    Args:
        path: The folder, as the user gave it.
        command: The name of the command.
        names: The files to write, relative to the folder.
        inputs: Files and folders that the command reads.
        kept: Those of the names whose files of an earlier call are kept instead of removed.

    Raises:
        UsageError: The folder holds or would replace something that the command did not write,
            lies in an input, or holds one.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        names: Iterable[str],
        inputs: Iterable[Path],
        kept: Collection[str] = (),
    ):
        self.path, self._command, self._names = path.absolute(), command, set(names)
        self._inside: dict[Path, bool] = {}  # by the folder of a file
        check_apart(path, inputs)
        earlier = claim(path, command)
        with refusals(path):
            stale = {self.path / name for name, hash in earlier.items() if self._is_own(name, hash)}
            for name in sorted(self._names):
                self._check_free(name, stale)
            self._hashes = {name: earlier[name] for name in kept if name in earlier}
            self._write_mark(
                earlier | dict.fromkeys(self._names, "") | self._hashes, complete=False
            )
            stale -= {self.path / name for name in self._hashes}
            for file in [*stale, *self._partial([*earlier, MARK])]:
                file.unlink()
            for folder in {(self.path / name).parent for name in self._names}:
                folder.mkdir(parents=True, exist_ok=True)

    def finish(self) -> None:
        """Record that every result is written."""
        files = [name for name in self._names if (self.path / name).is_file()]
        hashes = {name: self._hashes.get(name) or sha256(self.path / name) for name in files}
        self._write_mark(hashes, complete=True)

    def _is_own(self, name: str, hash: str) -> bool:
        """Return whether a file is as the command wrote it; hash is "" if it did not finish."""
        file = self.path / name
        if file.is_symlink() or not file.is_file() or not self._is_inside(name):
            return False
        return hash in ("", sha256(file))

    def _partial(self, names: Iterable[str]) -> Iterator[Path]:
        """Yield what a killed process left of files: see `whole_file`."""
        begun = {self.path / name for name in names if self._is_inside(name)}
        starts = {(path.parent, path.name[:LONGEST_START]) for path in begun}
        for folder in {parent for parent, _ in starts if parent.is_dir()}:
            for path in folder.glob("*.tmp-*"):
                if (folder, path.name.rpartition(".tmp-")[0]) in starts and path.is_file():
                    yield path

    def _is_inside(self, name: str) -> bool:
        """Return whether no symbolic link leads from the folder to elsewhere."""
        parent = Path(name).parent
        if parent not in self._inside:
            resolved = (self.path / parent).resolve()
            self._inside[parent] = (
                not parent.is_absolute() and resolved == self.path.resolve() / parent
            )
        return self._inside[parent]

    def _check_free(self, name: str, stale: set[Path]) -> None:
        file = self.path / name
        taken = os.path.lexists(file) and file not in stale
        if taken or not self._is_inside(name):
            raise UsageError(
                f"{name} would replace what {self._command} did not write",
                where=f"--out {self.path}",
                fix="name a new or empty folder",
            )

    def _write_mark(self, files: dict[str, str], *, complete: bool) -> None:
        mark = {
            "command": self._command,
            "complete": complete,
            "files": dict(sorted(files.items())),
        }
        write_json(self.path / MARK, mark)


@contextlib.contextmanager
def whole_folder(path: Path, option: str, command: str, inputs: Iterable[Path]) -> Iterator[Path]:
    """Yield a new folder, which becomes `path`, synced, only if the block succeeds.

    It replaces only what the same command wrote there, if nothing was added or changed since.

    Args:
        path: The folder, as the user gave it.
        option: The option that names it.
        command: The name of the command for the mark.
        inputs: Files and folders that the command reads.

    Raises:
        UsageError: The folder holds anything else, lies in an input, or cannot be written.
    """
    target = path.resolve()
    check_apart(path, inputs, option)
    with refusals(path, option):
        make_folder(target.parent)
        _check_replaceable(target, option, command)
    start = f".{target.name[:LONGEST_START]}.tmp-{platform.node()[:LONGEST_START]}-"
    for left in target.parent.glob(f"{glob.escape(start)}*"):  # by killed processes
        number = left.name.removeprefix(start)
        if made_by(left) == command and number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left)
    new, old = (target.with_name(f"{start}{kind}{os.getpid()}") for kind in ("", "old-"))
    with refusals(path, option):
        new.mkdir()
        write_json(new / MARK, {"command": command, "complete": False, "files": {}})
    try:
        yield new
        with disk_errors(path):
            write_json(new / MARK, {"command": command, "complete": True, "files": _hashes(new)})
            os.sync()
            _check_replaceable(target, option, command)
            if target.exists():
                target.rename(old)
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file below a folder by its name, except for the mark."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: sha256(path) if path.is_file() and not path.is_symlink() else ""
        for name, path in named.items()
        if name != MARK
    }


def _check_replaceable(folder: Path, option: str, command: str) -> None:
    """Check that a folder is missing, empty, or as `whole_folder` wrote it for the same command."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    mark = _read_mark(folder) if folder.is_dir() else None
    if mark is None or mark["command"] != command or mark["files"] != _hashes(folder):
        what = "was changed since" if mark and mark["command"] == command else "did not write"
        raise UsageError(
            f"it holds what `{command}` {what}",
            where=f"{option} {folder}",
            fix="name a new or empty folder",
        )


def claim(folder: Path, command: str) -> dict[str, str]:
    """Create a marked folder, or recognize the one that the same command made.

    Returns:
        The hashes of the files that the mark lists by their names, "" if unknown.

    Raises:
        UsageError: The folder holds anything else, or it cannot be written.
    """
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mark = _read_mark(folder)
        if mark and mark["command"] == command:
            return mark["files"]
        partial = f"{MARK}.tmp-"  # what a killed process left of the mark
        if any(not path.name.startswith(partial) for path in folder.iterdir()):
            what = f"the output of {mark['command']}" if mark else f"what {command} did not write"
            raise UsageError(
                f"the folder holds {what}",
                where=f"--out {folder}",
                fix="name a new or empty folder",
            )
        write_json(folder / MARK, {"command": command, "complete": False, "files": {}})
    return {}


def made_by(folder: Path) -> str | None:
    """Return the name of the command whose results a folder holds; None if it has no mark."""
    mark = _read_mark(folder)
    return mark["command"] if mark else None


def check_file(
    path: Path, option: str, signature: bytes, inputs: Iterable[Path], *, force: bool
) -> None:
    """Make sure that a command may write a file.

    Args:
        path: The file.
        option: The option that names it.
        signature: What the files that the command writes hold near their start.
        inputs: Folders that the command reads.
        force: Whether the user allows the command to replace any file.

    Raises:
        UsageError: The file would lie in an input or in a folder that does not exist, it is
            not a regular file, or the command did not write it and `force` is false.
    """
    target, where = path.absolute(), f"{option} {path}"
    if not target.parent.is_dir():
        missing = f"the folder {target.parent} does not exist"
        raise UsageError(missing, where=where, fix="create it first")
    for folder in inputs:
        if target.parent.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"it lies in {folder}, which is read", where=where, fix="name another")
    if not os.path.lexists(target):
        return
    regular = target.is_file() and not target.is_symlink()
    if not regular and not target.is_symlink():
        raise UsageError("is not a file", where=where, fix="name another")
    if not force and not (regular and _starts_with(target, signature)):
        raise UsageError(
            "exists already and may be yours", where=where, fix="name another, or add --force"
        )


def _starts_with(file: Path, signature: bytes) -> bool:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        return signature in opened.read(_HEAD)
    return False


@contextlib.contextmanager
def refusals(out: Path, option: str = "--out") -> Iterator[None]:
    """Translate an OSError while an output folder is prepared."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(reason, where=f"{option} {out}", fix="name another folder") from error


def check_apart(out: Path, inputs: Iterable[Path], option: str = "--out") -> None:
    """Raise UsageError if an output folder holds an input, or lies in one."""
    target = out.resolve()
    for path in inputs:
        source = path.resolve()
        if source.is_relative_to(target) or target.is_relative_to(source):
            raise UsageError(
                f"{path}, which is read, and the results would be in one folder",
                where=f"{option} {out}",
                fix="name a new or empty folder",
            )


def _read_mark(folder: Path) -> dict[str, Any] | None:
    """Return the mark of a folder; None if there is none, or if no command wrote it."""
    path = folder / MARK
    if path.is_symlink() or not path.is_file():
        return None
    try:
        mark = read_json(path)
        command, files = mark["command"], dict(mark["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    texts = (command, *files, *files.values())
    return {"command": command, "files": files} if all(isinstance(t, str) for t in texts) else None
