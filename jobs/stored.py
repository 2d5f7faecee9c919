"""Runs on storage as commands see them: through a folder of this host."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import config as configs
from jobs.config import Config
from pipeline.run import checkpoint, pull, stop, storage
from pipeline.run.folder import CHECKPOINTS, CONFIG
from pipeline.run.lease import Lease
from pipeline.run.location import location_of, mark
from pipeline.run.storage import OF_COMMAND, POLICY, Puller, files_of, is_small
from shards.errors import M2FError
from shards.files import is_url, read_json, read_regular
from shards.locks import file_lock
from shards.remote import RemoteFolder
from shards.text import say

LAST_TRIES = 2  # to see how a run on storage has ended


@dataclass(frozen=True)
class Home:
    """Where a command trains a run.

    Attributes:
        folder: The run folder; if the run is on storage, the folder of this host that shows it.
        url: The run on storage; None if it is in `folder` only.
    """

    folder: Path
    url: str | None = None

    @classmethod
    def of(cls, config: Config) -> "Home":
        """Return where a run is kept.

        Raises:
            UsageError: The folder of this host cannot be written.
        """
        if not is_url(config.runs):
            return cls(Path(config.runs, config.name).absolute())
        url = f"{config.runs}/{config.name}"
        return cls(storage.local_folder(url, storage.VIEWS), url)

    @property
    def shown(self) -> str:
        """The location of the run for people."""
        return self.url or str(self.folder)

    @property
    def is_fresh(self) -> bool:
        """Whether the run starts at step 0, because no checkpoint is known."""
        return not checkpoint.committed(self.folder / CHECKPOINTS)

    def take(self) -> None:
        """Bring the records of a run on storage, if it exists, to the folder.

        Raises:
            M2FError: The storage does not answer, or the disk refuses a file.
        """
        if self.url:
            Puller(RemoteFolder(self.url), self.folder).pull(is_small)

    def lease(self) -> Lease:
        """Return the lease of the run."""
        return Lease(RemoteFolder(self.url or f"file://{self.folder}"), say)

    def newest(self, report: Callable[[str], None]) -> Path | None:
        """Return the newest checkpoint that is whole, and report those that are skipped.

        On storage, sizes are compared; the workers compare the hashes of what they load.
        """
        if self.url is None:
            return checkpoint.newest(self.folder / CHECKPOINTS, report)
        sizes = RemoteFolder(self.url).files()
        for folder in checkpoint.committed(self.folder / CHECKPOINTS):
            prefix = folder.relative_to(self.folder).as_posix()
            if all(sizes.get(f"{prefix}/{name}") == size for name, size in _sizes(folder).items()):
                return folder
            report(f"checkpoint {folder.name} is skipped: its files differ from its manifest")
        return None

    def publish(self) -> None:
        """Send what this command has written about the run.

        Raises:
            M2FError: The storage does not answer.
        """
        for name in OF_COMMAND if self.url else ():
            RemoteFolder(self.shown).write(name, read_regular(self.folder / name))

    def withdraw_stop(self) -> None:
        """Withdraw a request to stop.

        Raises:
            M2FError: The storage does not answer.
        """
        stop.withdraw(self.folder)
        if self.url:
            RemoteFolder(self.url).remove(stop.STOP)

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Let an error in the context name the run on storage instead of the folder."""
        try:
            yield
        except M2FError as error:
            where = error.problem.where
            if self.url is None or not where.startswith(str(self.folder)):
                raise
            raise error.at(self.url + where.removeprefix(str(self.folder))) from error


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in the manifest of a checkpoint; one that is wrong has -1."""
    try:
        manifest = read_json(folder / checkpoint.MANIFEST)
        return {name: int(kept["bytes"]) for name, kept in manifest.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {checkpoint.MANIFEST: -1}


class View:
    """Keeps the folder of a command like the run on storage, and sends a request to stop there.

    Without storage, it does nothing.

    Args:
        home: Where the run is.
        tell: Receives lines for people.

    Attributes:
        failure: Why the end of the run could not be seen; "" if it was.
    """

    def __init__(self, home: Home, tell: Callable[[str], Any]):
        self._home, self._tell = home, tell
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._next: dict[str, float] = {}
        self._asked = False
        self.failure = ""
        if home.url:
            self._remote = RemoteFolder(home.url, POLICY)
            self._puller = Puller(self._remote, home.folder)

    def __enter__(self) -> "View":
        if self._home.url:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        if not self._home.url:
            return
        self._thread.join()
        for _try in range(LAST_TRIES):
            try:
                self._puller.pull(is_small)
            except M2FError as error:
                self.failure = error.problem.what
            else:
                self.failure = ""
                return

    def _run(self) -> None:
        is_away = False
        while not self._end.wait(storage.EVERY_S):
            try:
                if not self._asked and stop.is_requested(self._home.folder):
                    self._remote.write(stop.STOP, b"")
                    self._asked = True
                self._puller.pull(is_small, self._is_due)
            except M2FError as error:
                if not is_away:
                    self._tell(f"{self._home.url} does not answer ({error.problem.what})")
                is_away = True
            else:
                if is_away:
                    self._tell(f"{self._home.url} answers again")
                is_away = False

    def _is_due(self, name: str) -> bool:
        now, path = time.monotonic(), self._home.folder / name
        if now < self._next.get(name, 0):
            return False
        size = path.stat().st_size if path.exists() else 0
        self._next[name] = now + storage.interval_s(size)
        return True


@contextlib.contextmanager
def opened(run: str, which: str | None = None, *, needs_weights: bool = True) -> Iterator[Path]:
    """Yield the folder of a run that is given by name, path, or URL.

    A run on storage is copied to a folder of this host, with one checkpoint; what the context
    writes there is sent at its end.

    Args:
        run: The run.
        which: The checkpoint; see `choose_checkpoint`.
        needs_weights: Whether the checkpoint is needed.

    Raises:
        UsageError: There is no such run or checkpoint.
        M2FError: The storage does not answer, or the disk refuses a file.
    """
    if not is_url(run):
        yield configs.run_folder(run)
        return
    url = run.rstrip("/")
    with _copy(url) as folder, Home(folder, url).named():
        say(f"reading {url}")
        pull.take_records(url, folder)
        task = configs.load_run(folder).task
        if needs_weights:
            pull.take_checkpoint(url, which, task, folder)
        before = _states(folder)
        yield folder
        remote = RemoteFolder(url)
        for name, state in _states(folder).items():
            if before.get(name) != state:
                remote.send(folder / name, name)
                say(f"sent: {url}/{name}")


@contextlib.contextmanager
def _copy(url: str) -> Iterator[Path]:
    """Yield the folder of this host for a copy of a run, or a new one if a command uses that."""
    folder = storage.local_folder(url, storage.COPIES)
    with file_lock(folder.parent / f"{folder.name}.lock", wait=False) as is_free:
        if is_free:
            yield folder
            return
    own = folder.parent / f"{time.time_ns()}" / folder.name
    own.mkdir(parents=True)
    mark(own, location_of(folder))
    try:
        yield own
    finally:
        shutil.rmtree(own.parent, ignore_errors=True)


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of the last change of what a command may write into a run."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in files_of(folder)}
    return {
        name: (status.st_size, status.st_mtime_ns)
        for name, status in found.items()
        if not name.startswith(f"{CHECKPOINTS}/") and name != CONFIG and ".tmp-" not in name
    }
