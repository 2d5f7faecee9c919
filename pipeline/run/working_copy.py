"""The folder of a host in which workers train a run that is on storage."""

import contextlib
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.distributed import all_gather, from_rank_0, rank_and_world
from pipeline.run import eventlog, pull, storage
from pipeline.run.events import Event
from pipeline.run.lease import is_held
from pipeline.run.mirror import Mirror
from pipeline.run.storage import Puller
from pipeline.settings import RunSettings
from shards.errors import Failed, M2FError
from shards.files import read_regular
from shards.remote import RemoteFolder, RetryPolicy

ONCE = RetryPolicy(tries=1, timeout_s=30)


@dataclass(frozen=True)
class WorkingCopy:
    """A run on storage, and the folder of this host that stands for it.

    Attributes:
        url: The run.
        owner: The owner in the run's lease, to which the workers belong.
    """

    url: str
    owner: str

    @property
    def folder(self) -> Path:
        """The folder of this host."""
        return storage.local_folder(self.url, storage.WORK)

    def history(self) -> list[Event]:
        """Return the events on storage; none if it does not answer."""
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(M2FError):
            Puller(RemoteFolder(self.url, storage.POLICY), Path(folder)).pull(eventlog.is_log)
            return eventlog.read(Path(folder))
        return []

    def send_log(self) -> None:
        """Send the log of this host, which may end with the reason why this process ends."""
        remote, path = RemoteFolder(self.url, ONCE), self.folder / eventlog.own_name()
        with contextlib.suppress(M2FError, OSError):
            is_new = path.name not in remote.files()
            if is_held(remote, self.owner) and (is_new or storage.is_ahead(remote, path)):
                remote.write(path.name, read_regular(path))

    @contextlib.contextmanager
    def kept(self, settings: RunSettings) -> Iterator[None]:
        """Take the run from storage, and send what is written in the context.

        All ranks must call it.

        Raises:
            UsageError: Checkpoints are sharded over several hosts.
            Failed: The storage does not answer, at the start or until long after the end; or
                another command owns the run.
        """
        from_rank_0(self._check_owner)
        pull.prepare(self.url, self.folder, is_sharded=settings.zero.stage == 3)
        hosts, (rank, _) = all_gather(platform.node()), rank_and_world()
        if hosts.index(hosts[rank]) != rank:  # another rank of this host does it
            yield
            return
        sender = Mirror(
            self.url,
            self.folder,
            owner=self.owner,
            keep=settings.checkpoint.keep,
            task=settings.task,
            of_run=rank == 0,
        )
        with sender:
            yield
        if sender.waiting:
            raise Failed(
                f"what was trained is not on storage ({sender.waiting})",
                where=self.url,
                fix=f"repeat the command on {platform.node()}, where it is in {self.folder}",
            )

    def _check_owner(self) -> None:
        if not is_held(RemoteFolder(self.url), self.owner):
            raise Failed("another command owns the run", where=self.url)
