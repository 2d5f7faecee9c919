"""Send what the workers of a run write to storage while they train.

Two threads of one worker per host do this, so that a large checkpoint delays neither the records
nor a request to stop. Training never waits for them. If the storage is away, they try again until
it is back, and everything that was written meanwhile is on the disk of the host.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.run import checkpoint, eventlog, events, retention, stop, storage
from pipeline.run.checkpoint import COMMITTED
from pipeline.run.folder import CHECKPOINTS, EVALUATIONS, best_step
from pipeline.run.lease import is_held
from pipeline.run.storage import OF_COMMAND, POLICY, WANDB, Wanted, files_of
from pipeline.run.watchdog import STACKS
from shards.errors import M2FError
from shards.files import read_regular
from shards.remote import RemoteFolder

LONGEST_PAUSE_S = 8.0
WANDB_EVERY_S = 120.0
FLUSH_S = 600.0  # at the end of a run, while the storage is away
FAILED_S = 20.0  # the same after an error, before the workers are restarted


class Mirror:
    """Sends a host's part of a run to storage, as long as the context lasts.

    Args:
        url: The run on storage.
        folder: The folder in which this host trains.
        owner: The owner in the run's lease. Nothing is sent once another has the lease.
        keep: Number of newest checkpoints that storage keeps.
        task: The task whose score decides which checkpoint is the best one.
        of_run: Whether this host, that of rank 0, sends the checkpoints and all records. Another
            one sends its own log, and the stacks of its processes.

    Attributes:
        waiting: What could not be sent until the end of the context; "" if everything was.
    """

    def __init__(self, url: str, folder: Path, *, owner: str, keep: int, task: str, of_run: bool):
        remote = RemoteFolder(url, POLICY)
        records = Records(remote, folder, owner, _is_of_run if of_run else _is_of_host)
        self._threads = [Sender(records, folder, f"records to {url}")]
        if of_run:
            sent = Checkpoints(records, keep, task)
            self._threads.append(Sender(sent, folder, f"checkpoints to {url}"))
        self.waiting = ""

    def __enter__(self) -> "Mirror":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        limit_s = FLUSH_S if kind is None else FAILED_S
        for thread in reversed(self._threads):  # the records last: they tell of the checkpoints
            thread.end(time.monotonic() + limit_s)
            thread.join(None if kind is None else limit_s)
        self.waiting = "; ".join(thread.failure for thread in self._threads if thread.failure)


def _is_of_run(name: str) -> bool:
    is_own = name not in OF_COMMAND and not eventlog.is_log_of_host(name)
    return is_own and (storage.is_record(name) or name.startswith((f"{WANDB}/", f"{STACKS}/")))


def _is_of_host(name: str) -> bool:
    return name == eventlog.own_name() or name.startswith(f"{STACKS}/")


class Lost(Exception):
    """Another command owns the run."""


class Sender(threading.Thread):
    """Calls `send` again and again; reports once that it fails, and once that it succeeds again.

    Args:
        send: Sends what has changed. Its argument tells whether it is the last call.
        folder: The run folder, for the events.
        what: What is sent, and where, for people.

    Attributes:
        failure: Why the last call failed; "" if it succeeded.
    """

    def __init__(self, send: Callable[[bool], None], folder: Path, what: str):
        super().__init__(daemon=True, name=f"send {what}")
        self._send, self._folder, self._what = send, folder, what
        self._ended, self._deadline = threading.Event(), 0.0
        self.failure, self._since = "", 0.0

    def end(self, deadline: float) -> None:
        """Ask for the last call, which is repeated until it succeeds or the deadline has passed."""
        self._deadline = deadline
        self._ended.set()

    def run(self) -> None:
        """Send until the end."""
        pause = storage.EVERY_S
        while True:
            is_last = self._ended.wait(pause)
            try:
                self._send(is_last)
            except Lost as error:
                self.failure = str(error)
                return
            except Exception as error:  # whatever fails here, training continues
                self._report(error.problem.what if isinstance(error, M2FError) else repr(error))
                pause = min(2 * pause, LONGEST_PAUSE_S)
                if is_last and time.monotonic() > self._deadline:
                    return
                if is_last:
                    time.sleep(storage.EVERY_S)
                continue
            self._report("")
            pause = storage.EVERY_S
            if is_last:
                return

    def _report(self, failure: str) -> None:
        had_failed, self.failure = bool(self.failure), failure
        if failure and not had_failed:
            self._since = time.monotonic()
            self._warn(f"cannot send {self._what} yet ({failure}); training continues")
        elif had_failed and not failure:
            self._warn(f"can send {self._what} again, after {time.monotonic() - self._since:.0f} s")

    def _warn(self, text: str) -> None:
        eventlog.append(self._folder, events.Warned(rank=0, category="Storage", text=text))


class Records:
    """Sends the records of a run that have changed, and passes on a request to stop."""

    def __init__(self, remote: RemoteFolder, folder: Path, owner: str, wanted: Wanted):
        self.remote, self.folder, self._owner, self._wanted = remote, folder, owner, wanted
        self._lock = threading.Lock()
        self._sent: dict[str, tuple[int, int]] = {}
        self._next: dict[str, float] = {}
        self._wandb_at = time.monotonic() + WANDB_EVERY_S

    def __call__(self, is_last: bool) -> None:
        """Send what is due; everything if it is the last call."""
        self.check_owner()
        if not stop.is_requested(self.folder) and self.remote.info(stop.STOP):
            stop.request(self.folder)
        with_wandb = is_last or time.monotonic() > self._wandb_at
        self.send(everything=is_last, with_wandb=with_wandb)
        if with_wandb:
            self._wandb_at = time.monotonic() + WANDB_EVERY_S

    def check_owner(self) -> None:
        """Check that the run still belongs to the command of this worker; otherwise ask it to stop.

        Raises:
            Lost: It does not.
        """
        if not is_held(self.remote, self._owner):
            stop.request(self.folder)
            raise Lost("another command owns the run, so that nothing more is sent")

    def send(self, *, everything: bool, with_wandb: bool = False) -> None:
        """Send what has changed and is due, and remove scores that a resumed run has dropped.

        Args:
            everything: Whether all that has changed is due.
            with_wandb: Send the files of W&B, too.
        """
        with self._lock:
            self._sent = self._sent or self._known()
            paths = files_of(self.folder)
            found = {path.relative_to(self.folder).as_posix(): path for path in paths}
            for name in sorted(filter(self._is_sent, found)):
                if with_wandb or not name.startswith(f"{WANDB}/"):
                    self._send(name, found[name], everything)
            known = [name for name in self._sent if name.startswith(f"{EVALUATIONS}/")]
            for name in set(known) - found.keys():
                self.remote.remove(name)
                del self._sent[name]

    def _is_sent(self, name: str) -> bool:
        return self._wanted(name) and ".tmp-" not in name

    def _known(self) -> dict[str, tuple[int, int]]:
        """Return the state of the local files that are on storage with the same size."""
        known = {}
        for name, size in self.remote.files().items():
            path = self.folder / name
            is_log = name.endswith(".jsonl")  # a resumed run may have rewritten it
            if self._is_sent(name) and not is_log and path.is_file():
                known |= {name: state} if (state := _state(path))[0] == size else {}
        return known

    def _send(self, name: str, path: Path, at_once: bool) -> None:
        try:
            state = _state(path)
            if self._sent.get(name) == state:
                return
            if time.monotonic() < self._next.get(name, 0) and not at_once:
                return
            content = read_regular(path)
        except FileNotFoundError:  # removed meanwhile
            return
        self.remote.write(name, content)
        self._sent[name] = state
        self._next[name] = time.monotonic() + storage.interval_s(len(content))


class Checkpoints:
    """Sends the whole checkpoints of a run, and removes those that storage does not keep."""

    def __init__(self, records: Records, keep: int, task: str):
        self._records, self._remote, self._folder = records, records.remote, records.folder
        self._keep, self._task = keep, task
        self._there: set[str] | None = None  # names of whole checkpoints on storage
        self._sent: set[str] = set()  # files of checkpoints that are not whole there yet
        self._step = 0  # of the newest checkpoint that was sent

    def __call__(self, is_last: bool) -> None:
        """Send the checkpoints that are not on storage, the newest first."""
        if self._there is None:
            self._there = set(storage.committed(set(self._remote.files())))
        while waiting := self._waiting(self._there):
            name = waiting[0]
            self._records.check_owner()
            self._records.send(everything=True)  # whoever resumes from it has all rows before it
            if self._send(name):
                self._there.add(name)
                self._step = max(self._step, checkpoint.step_of(Path(name)))
                self._prune()

    def _waiting(self, there: set[str]) -> list[str]:
        """Return the local checkpoints that storage does not have and would keep."""
        local = [path.name for path in checkpoint.committed(self._folder / CHECKPOINTS)]
        new = [name for name in local if name not in there]
        if not new:
            return []
        whole = checkpoint.newest_first({*local, *there})
        step = max(self._step, checkpoint.step_of(Path(new[0])))
        outdated = self._outdated(whole, whole, step)
        return [name for name in new if name not in outdated]

    def _outdated(self, names: list[str], whole: list[str], step: int) -> list[str]:
        best = best_step(self._folder, self._task, [checkpoint.step_of(Path(n)) for n in whole])
        return retention.outdated(names, whole, step, self._keep, best)

    def _send(self, name: str) -> bool:
        """Send a checkpoint; return False if it is removed meanwhile."""
        try:
            storage.send_checkpoint(self._remote, self._folder, name, self._sent)
        except FileNotFoundError:
            if (self._folder / CHECKPOINTS / name / COMMITTED).exists():
                raise
            return False
        self._sent.clear()
        return True

    def _prune(self) -> None:
        """Remove the checkpoints that storage does not keep, COMMITTED first."""
        names = set(self._remote.files())
        for old in self._outdated(storage.checkpoints(names), storage.committed(names), self._step):
            prefix = f"{CHECKPOINTS}/{old}/"
            files = [name for name in names if name.startswith(prefix)]
            for name in sorted(files, key=lambda name: name != f"{CHECKPOINTS}/{old}/{COMMITTED}"):
                self._remote.remove(name)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
