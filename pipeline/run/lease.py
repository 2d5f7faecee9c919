"""The lease of a run: a file in it that names the command which owns the run, with a heartbeat.

It holds among hosts, on a shared folder and on an object store; `flock` holds among the processes
of one host. The clocks of hosts are never compared: who waits for a lease watches whether it
changes, by a clock of its own.
"""

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.errors import Failed, M2FError, UsageError
from shards.files import parse_json
from shards.remote import RemoteFolder, RetryPolicy

LEASE = "lease.json"
BEAT_S = 5
ABANDONED_S = 30  # a lease that did not change for so long has no living owner
POLL_S = 1
SETTLE_S = 1  # after which the last of two commands that took one lease is known
BEAT_POLICY = RetryPolicy(tries=1, timeout_s=20)
OTHER_COMMAND = "the run is being trained by another command"


class Lease:
    """The lease of one run. As a context, it is held from the start to the end.

    Args:
        remote: The run.
        say: Receives a line for people if the lease of another command has to be waited for.

    Attributes:
        owner: Identifier of this owner.
        is_lost: Whether another command has taken the lease, or somebody has removed it.

    Raises:
        UsageError: At the start of the context: another command holds the lease.
    """

    def __init__(self, remote: RemoteFolder, say: Callable[[str], object] = print):
        self._remote, self._say = remote, say
        self._beats = RemoteFolder(remote.url, BEAT_POLICY)
        self.owner, self.is_lost = secrets.token_hex(8), False
        self._beat = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Lease":
        while not self._remote.create(LEASE, self._content()):
            seen = self._abandoned()
            if seen is not None and self._take():
                break
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(M2FError):  # others take an abandoned lease
            if not self.is_lost and owner_of(self._beats) == self.owner:
                self._beats.remove(LEASE)

    def check(self) -> None:
        """Check that the lease is held.

        Raises:
            Failed: Another command has it, or it was removed.
        """
        if self.is_lost:
            raise Failed(
                f"this command is not the owner of the run any more: {LEASE} was removed, or "
                "another command has taken it while this one did not answer",
                where=self._remote.url.removeprefix("file://"),
                fix="let the other command train the run, or end it and repeat this one",
            )

    def _content(self) -> bytes:
        return json.dumps({
            "owner": self.owner,
            "host": platform.node(),
            "pid": os.getpid(),
            "started": _start_of(os.getpid()),
            "machine": _machine(),
            "beat": self._beat,
        }).encode()  # fmt: skip

    def _abandoned(self) -> bytes | None:
        """Wait until the lease has no living owner; return its content, None if it was removed.

        Raises:
            UsageError: Its owner lives.
        """
        seen = _read(self._remote)
        since = time.monotonic()
        holder = _parsed(seen)
        name = f"pid {holder.get('pid')} on {holder.get('host')}"
        if seen is None or _is_dead_here(holder):
            return seen
        self._say(
            f"{self._where()}: owned by {name}; waiting up to {ABANDONED_S} s for a sign of it"
        )
        while time.monotonic() - since < ABANDONED_S:
            time.sleep(POLL_S)
            asked = time.monotonic()
            now = _read(self._remote)
            if now is None:
                return None
            if now != seen:
                raise UsageError(
                    f"{OTHER_COMMAND} ({name})",
                    where=self._where(),
                    fix="name another run: name=NAME",
                )
            if time.monotonic() - asked > BEAT_S:  # the owner could not write meanwhile either
                since = time.monotonic()
        return seen

    def _take(self) -> bool:
        """Write this owner into an abandoned lease; return False if another was later."""
        self._remote.write(LEASE, self._content())
        time.sleep(SETTLE_S)
        return owner_of(self._remote) == self.owner

    def _keep(self) -> None:
        while not self._end.wait(BEAT_S):
            with contextlib.suppress(M2FError):  # the storage is away; the next beat may arrive
                self.is_lost = not is_held(self._beats, self.owner)
                if self.is_lost:
                    return
                self._beat += 1
                self._beats.write(LEASE, self._content())

    def _where(self) -> str:
        return self._remote.url.removeprefix("file://")


def owner_of(remote: RemoteFolder) -> str | None:
    """Return the identifier of the owner of a run; None without one."""
    return _parsed(_read(remote)).get("owner")


def is_held(remote: RemoteFolder, owner: str) -> bool:
    """Return whether the lease of a run is that of an owner."""
    content = _read(remote)
    # A file without an owner is being written, or a full disk has cut it.
    return content is not None and _parsed(content).get("owner") in (owner, None)


def _read(remote: RemoteFolder) -> bytes | None:
    try:
        return remote.read(LEASE)
    except FileNotFoundError:
        return None


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        found = parse_json(content or b"")
    except ValueError:  # it is being written
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Return whether the owner was a process of this machine that has ended."""
    pid = holder.get("pid")
    if not isinstance(pid, int) or holder.get("machine") != _machine():
        return False
    return holder.get("started") != _start_of(pid)


def _machine() -> str:
    """Return what processes share that see each other by their ids: the boot, and a namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return secrets.token_hex(8)  # equal to no other


def _start_of(pid: int) -> str | None:
    """Return when a process was started, in ticks since the boot; None if it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else rest[18]
