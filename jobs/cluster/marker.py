"""Files that hosts exchange through the runs, which shows whether all of them use one storage."""

import contextlib
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.cluster.findings import Finding
from shards.errors import Failed, M2FError, UsageError
from shards.files import is_url
from shards.remote import RemoteFolder, RetryPolicy

PREFIX = ".preflight-"
DRIVER = "driver"  # name of the file of the driver
WAIT_S = 3  # until a new file is visible on the other clients of a network file system
ONCE = RetryPolicy(tries=1, timeout_s=10)


@contextlib.contextmanager
def marker(runs: str) -> Iterator[str]:
    """Make a folder in the runs with a file of the driver, and remove both at the end.

    Args:
        runs: A folder or URL.

    Yields:
        The name of the folder.

    Raises:
        UsageError: The driver cannot write there.
        Failed: The server does not answer.
    """
    name = f"{PREFIX}{secrets.token_hex(8)}"
    remote = RemoteFolder(f"{runs}/{name}", ONCE)
    folders = [] if is_url(runs) else [Path(runs, name), Path(runs)]
    made = [folder for folder in folders if not folder.exists()]
    try:
        _write(remote, DRIVER)
        yield name
    finally:
        with contextlib.suppress(M2FError, OSError):
            for file in remote.files():
                remote.remove(file)
            for folder in made:
                folder.rmdir()


def unseen(runs: str, name: str, hosts: Sequence[str], driver: str) -> Iterator[Finding]:
    """Yield the hosts whose files the driver cannot see.

    Args:
        runs: A folder or URL.
        name: The name of the folder in it.
        hosts: The hosts that have written.
        driver: Name of this host.
    """
    found = RemoteFolder(f"{runs}/{name}", ONCE).files() if hosts else ()
    for host in hosts:
        if _file_of(host) not in found:
            what = f"runs={runs}: a file that the host has written there is not seen on {driver}"
            yield Finding((host,), what, "give a folder that all hosts share, or a URL")


def exchange(runs: str, folder: str, name: str) -> bool:
    """Look for the file of the driver, and write one of this host if it is there.

    Returns:
        Whether the file of the driver is there.


    Raises:
        UsageError: The host cannot write.
        Failed: The server does not answer.
    """
    remote = RemoteFolder(f"{runs}/{folder}", ONCE)
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            remote.read(DRIVER)
            break
        except FileNotFoundError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
    _write(remote, _file_of(name))
    return True


def _file_of(host: str) -> str:
    """Return the name of the file that a host writes."""
    return re.sub(r"[^\w.-]", "_", host)


def forget(runs: str, folder: str, name: str) -> None:
    """Remove the file of this host, which the driver may not see."""
    with contextlib.suppress(M2FError, OSError):
        RemoteFolder(f"{runs}/{folder}", ONCE).remove(_file_of(name))


def _write(remote: RemoteFolder, name: str) -> None:
    """Write a small file to a storage.

    Raises:
        UsageError: The bucket is missing, the protocol cannot write, or this user may not.
        Failed: The server does not answer.
    """
    try:
        remote.write(name, b"")
    except Failed as error:
        if isinstance(cause := error.__cause__, PermissionError):
            what = f"this user may not write ({cause.strerror or cause})"
            raise UsageError(what, where=remote.url.rpartition("/")[0]) from error
        raise
