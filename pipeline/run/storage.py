"""A run on storage: its URL, the folders of this host that stand for it, and what is copied."""

import os
import platform
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from pipeline.run import checkpoint
from pipeline.run.checkpoint import COMMITTED
from pipeline.run.folder import CHECKPOINTS, CONFIG
from pipeline.run.lease import LEASE
from pipeline.run.location import mark
from shards.errors import UsageError
from shards.file_info import FileInfo
from shards.files import disk_errors, expanded, leaves_folder, make_folder, read_regular
from shards.remote import RemoteFolder, RetryPolicy

OF_COMMAND = (CONFIG, "environment.json")  # the command that trains writes them, and not a worker
WANDB = "wandb"
WORK, VIEWS, COPIES, WEIGHTS = "runs", "views", "copies", "weights"
POLICY = RetryPolicy(tries=2, first_pause_s=1, timeout_s=30)  # of what is repeated anyway
EVERY_S = 2.0
BYTES_PER_S = 1 << 20  # at most, for a record that grows and is copied whole
OWN_FOLDERS = (CHECKPOINTS, WANDB, "ray", "exports", "stacks")  # of which a reader needs no copy

Wanted = Callable[[str], bool]


def cache_folder() -> str:
    """Return the folder of each host below which folders stand for runs on storage."""
    return os.environ.get("M2F_CACHE") or "~/.cache/mask2former"


def local_folder(url: str, kind: str) -> Path:
    """Return the folder of this host that stands for a run on storage, for one purpose.

    The host is a part of its path, because hosts can share a home folder.

    Args:
        url: The URL of the run.
        kind: WORK: workers train in it. VIEWS: the command that trains looks at it. COPIES: other
            commands use it. WEIGHTS: networks start from its checkpoint.

    Raises:
        UsageError: The folder for caches is not known or cannot be written.
    """
    base = expanded(cache_folder()).absolute()
    parent, _, name = url.rstrip("/").rpartition("/")
    digest = sha256(f"{parent}\n{platform.node()}".encode()).hexdigest()[:16]
    folder = base / kind / digest / name
    with disk_errors(folder):
        make_folder(folder)
        mark(folder, url.rstrip("/"))
    return folder


def interval_s(size: int) -> float:
    """Return the time between two copies of a record of `size` bytes, in seconds.

    A record that grows is copied whole. So the traffic is bounded, however long the run is.
    """
    return max(EVERY_S, size / BYTES_PER_S)


def is_record(name: str) -> bool:
    """Return whether a reader of a run needs its file `name`, besides checkpoints."""
    first = name.partition("/")[0]
    is_hidden = name.rpartition("/")[2].startswith(".") or name == LEASE
    return not is_hidden and ".tmp-" not in name and first not in OWN_FOLDERS


def is_small(name: str) -> bool:
    """Return whether `name` is a record, or one of the small files of a checkpoint."""
    return is_record(name) or (
        name.startswith(f"{CHECKPOINTS}/")
        and name.rpartition("/")[2] in (COMMITTED, checkpoint.MANIFEST, checkpoint.TRAINER_STATE)
    )


def committed(names: set[str]) -> list[str]:
    """Return the names of the whole checkpoints among the files of a run, the newest first."""
    marked = {name.split("/")[1] for name in names if _is_mark(name)}
    return checkpoint.newest_first(marked)


def checkpoints(names: set[str]) -> list[str]:
    """Return the names of all checkpoints among the files of a run, the newest first."""
    prefix = f"{CHECKPOINTS}/"
    return checkpoint.newest_first({n.split("/")[1] for n in names if n.startswith(prefix)})


def _is_mark(name: str) -> bool:
    return name.startswith(f"{CHECKPOINTS}/") and name.split("/")[2:] == [COMMITTED]


class Puller:
    """Copies the files of a run from storage to a folder when they change.

    Args:
        remote: The run on storage.
        folder: The folder, which stands for the run.
    """

    def __init__(self, remote: RemoteFolder, folder: Path):
        self.remote, self.folder = remote, folder
        self._seen: dict[str, FileInfo] = {}

    def pull(self, wanted: Wanted, due: Wanted = lambda name: True) -> dict[str, FileInfo]:
        """Copy the files that were changed since the last call, and remove those that are gone.

        Args:
            wanted: Tells which files are copied; others stay as they are.
            due: Tells which of them are copied now.

        Returns:
            All files of the run on storage.

        Raises:
            M2FError: The storage does not answer, or the disk refuses a file.
        """
        infos = {n: info for n, info in self.remote.infos().items() if not leaves_folder(n)}
        with disk_errors(self.folder):
            for name in sorted(infos, key=lambda name: (name.endswith(COMMITTED), name)):
                if wanted(name) and self._seen.get(name) != infos[name] and due(name):
                    make_folder((self.folder / name).parent)
                    if self.remote.fetch(name, self.folder / name):
                        self._seen[name] = infos[name]
            for path in files_of(self.folder):
                name = path.relative_to(self.folder).as_posix()
                if wanted(name) and name not in infos:
                    path.unlink(missing_ok=True)
                    self._seen.pop(name, None)
        return infos

    def pull_run(self, wanted: Wanted) -> dict[str, FileInfo]:
        """Pull as `pull` does, and check that a run is there.

        Raises:
            UsageError: There is no run.
            M2FError: The storage does not answer, or the disk refuses a file.
        """
        infos = self.pull(wanted)
        if CONFIG not in infos:
            fix = "give the URL of a run's folder"
            raise UsageError("no run is there", where=self.remote.url, fix=fix)
        return infos


def files_of(folder: Path) -> list[Path]:
    """Return the regular files below a folder, without links."""
    return [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(parent, name).is_file() and not Path(parent, name).is_symlink()
    ]


def is_ahead(remote: RemoteFolder, path: Path) -> bool:
    """Return whether a log on this host is that on storage, with more lines or as many.

    Only then was it this host that wrote last. Logs are appended to, and never cut.
    """
    try:
        there, here = remote.read(path.name), read_regular(path)
    except OSError:
        return False
    return bool(there) and here.startswith(there)


def pull_checkpoint(remote: RemoteFolder, folder: Path, name: str) -> Path:
    """Copy a checkpoint from storage to a run folder, COMMITTED last; return its folder.

    Raises:
        M2FError: The storage does not answer, or the disk refuses a file.
    """
    target = folder / CHECKPOINTS / name
    prefix = f"{CHECKPOINTS}/{name}/"
    files = [n for n in remote.files() if n.startswith(prefix) and not leaves_folder(n)]
    with disk_errors(target):
        (target / COMMITTED).unlink(missing_ok=True)
        for file in sorted(files, key=lambda file: file == prefix + COMMITTED):
            make_folder((folder / file).parent)
            remote.fetch(file, folder / file)
    return target


def send_checkpoint(remote: RemoteFolder, folder: Path, name: str, sent: set[str]) -> None:
    """Send a checkpoint of a run folder to storage, COMMITTED last.

    Args:
        remote: The run on storage.
        folder: The run folder.
        name: The checkpoint.
        sent: The files that are there already; those that are sent now are added.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing.
        M2FError: The storage does not answer.
    """
    files = files_of(folder / CHECKPOINTS / name)
    for path in sorted(files, key=lambda path: path.name == COMMITTED):
        target = path.relative_to(folder).as_posix()
        if target not in sent:
            remote.send(path, target)
            sent.add(target)
