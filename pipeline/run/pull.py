"""Take a run from storage: for its workers, and for whoever reads its weights."""

import platform
import shutil
import warnings
from pathlib import Path

from pipeline.distributed import all_gather, call_on_all_ranks, from_rank_0, rank_and_world
from pipeline.run import checkpoint, stop, storage
from pipeline.run.eventlog import EVENTS, is_log_of_host
from pipeline.run.folder import CHECKPOINTS, choose_checkpoint
from pipeline.run.storage import OF_COMMAND, Puller, is_ahead, is_record, is_small
from shards.errors import UsageError
from shards.files import read_regular
from shards.locks import file_lock
from shards.remote import RemoteFolder


def prepare(url: str, folder: Path, *, is_sharded: bool) -> None:
    """Bring a run from storage to the folder of every host that trains it. All ranks must call it.

    Rank 0 takes the records and the newest checkpoint that is whole, and the other hosts the same
    one. What is on storage counts, unless the log of rank 0's host continues the log there: then
    this host wrote last, and what it could not send is used.

    Args:
        url: The run on storage.
        folder: The folder of this host.
        is_sharded: Whether the files of a checkpoint are written by all ranks.

    Raises:
        UsageError: Checkpoints are sharded over several hosts.
        M2FError: The storage does not answer, or the disk refuses a file.
    """
    remote = RemoteFolder(url)
    rank, _ = rank_and_world()
    hosts = all_gather(platform.node())
    if is_sharded and len(set(hosts)) > 1:
        raise UsageError(
            "with zero.stage=3, each host writes a part of a checkpoint, and a folder that all "
            "hosts share has to collect them",
            where=f"runs={url.rpartition('/')[0]}",
            fix="give a shared folder, or another zero.stage",
        )
    name = from_rank_0(lambda: _take(remote, folder, is_alone=len(set(hosts)) == 1))
    if rank > 0 and hosts.index(hosts[rank]) == rank:
        call_on_all_ranks(lambda: _take_part(remote, folder, name))
    else:
        call_on_all_ranks(lambda: None)


def _take(remote: RemoteFolder, folder: Path, *, is_alone: bool) -> str | None:
    """Take the records and the newest whole checkpoint; return its name."""
    ahead = is_ahead(remote, folder / EVENTS)

    def wanted(name: str) -> bool:
        if not ahead or name in OF_COMMAND:
            return is_record(name)
        return is_log_of_host(name) and not is_ahead(remote, folder / name)

    names = set(Puller(remote, folder).pull(wanted))
    if stop.STOP not in names:
        stop.withdraw(folder)  # an earlier one
    there = storage.committed(names)
    local = folder / CHECKPOINTS
    if not ahead:
        for path in checkpoint.folders(local):
            if path.name not in there:
                shutil.rmtree(path)
    here = [path.name for path in checkpoint.committed(local)]
    for name in checkpoint.newest_first({*there, *here}):
        if name in there and not _is_same(remote, local / name):
            storage.pull_checkpoint(remote, folder, name)
        if checkpoint.damage(local / name) is None:
            if name not in there and not is_alone:
                storage.send_checkpoint(remote, folder, name, set())
            return name
    return None


def _take_part(remote: RemoteFolder, folder: Path, name: str | None) -> None:
    """Take the logs of hosts, and the checkpoint `name`, which other ranks have chosen."""

    def wanted(file: str) -> bool:
        return is_log_of_host(file) and not is_ahead(remote, folder / file)

    stop.withdraw(folder)
    Puller(remote, folder).pull(wanted)
    local = folder / CHECKPOINTS
    for path in checkpoint.folders(local):
        if path.name != name:
            shutil.rmtree(path)
    if name and not _is_same(remote, local / name):
        storage.pull_checkpoint(remote, folder, name)


def _is_same(remote: RemoteFolder, folder: Path) -> bool:
    """Return whether a checkpoint on this host is whole, and the one on storage."""
    if checkpoint.damage(folder) is not None:
        return False
    manifest = f"{CHECKPOINTS}/{folder.name}/{checkpoint.MANIFEST}"
    try:
        return remote.read(manifest) == read_regular(folder / checkpoint.MANIFEST)
    except FileNotFoundError:
        return False


def take_checkpoint(url: str, which: str | None, task: str, folder: Path) -> Path:
    """Take a checkpoint of a run whose records were taken; return the folder of the checkpoint.

    Args:
        url: The run on storage.
        which: The checkpoint; see `choose_checkpoint`.
        task: The task whose score decides.
        folder: The folder with the records.

    Raises:
        UsageError: The run has no such checkpoint.
        M2FError: The storage does not answer, or the disk refuses a file.
    """
    remote = RemoteFolder(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who loads the checkpoint chooses it again
        path = choose_checkpoint(folder, which, task)
    if not _is_same(remote, path):
        storage.pull_checkpoint(remote, folder, path.name)
    return path


def take_records(url: str, folder: Path) -> None:
    """Take what is small of a run.

    Raises:
        UsageError: There is no run.
        M2FError: The storage does not answer, or the disk refuses a file.
    """
    names = set(Puller(RemoteFolder(url), folder).pull_run(is_small))
    there = storage.committed(names)
    for path in checkpoint.folders(folder / CHECKPOINTS):
        if path.name not in there:
            shutil.rmtree(path)


def weights_of(url: str, task: str) -> Path:
    """Return a folder of this host with the records and the best checkpoint of a run on storage.

    Raises:
        UsageError: There is no run, or it has no checkpoint.
        M2FError: The storage does not answer, or the disk refuses a file.
    """
    folder = storage.local_folder(url, storage.WEIGHTS)
    with file_lock(folder / ".lock"):  # every rank of this host may come
        take_records(url, folder)
        take_checkpoint(url, None, task, folder)
    return folder
