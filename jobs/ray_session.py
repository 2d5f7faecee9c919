"""Ray as long as one command runs: on this machine, reachable by this user alone, or a cluster.

Ray's driver lives in a process of its own below the command, in its own session. The command stays
in charge of the terminal and the signals: Ctrl-C does not reach Ray's processes, a crash of Ray is
one line, and at the end, however it comes, no process and no temporary file is left. A cluster
ends the workers of a driver that has died.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

from jobs.processes import adopt_orphans, descendants, end_descendants
from shards.errors import Failed, M2FError
from shards.scratch import private_folder, remove
from shards.text import say

STARTS = 3  # Ray gives its processes 30 s, which a loaded machine may exceed
POLL_S = 0.2
DRIVER_LOG = "driver.log"
OBJECT_STORE_BYTES = 200 * 2**20
# What a session of `train` imports and what Ray Train does, except for Ray itself, which reads the
# environment of the session at its import.
LIBRARIES = ("jobs.training", "pandas")

# Ray and the libraries of its workers read these as they start. Values of the user take precedence.
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # hides the GPUs from a worker that reserves none
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # normal priority; Ray's default lowers it
    "HF_HUB_OFFLINE": "1",  # weights are in folders; training downloads nothing
}


class Message(NamedTuple):
    """What the process of Ray tells the command.

    Attributes:
        state: "started", "not started", "said", or "ended".
        text: Why Ray did not start, a line for people, or the outcome.
        error: The error that the command ends with, if `text` is only its text.
    """

    state: str
    text: Any = ""
    error: M2FError | None = None


_sender: Any = None  # to the command, in the process of Ray


def send(message: Message) -> None:
    """Send a message from the process of Ray to the command; drop it in any other process."""
    if _sender is not None:
        _sender.send(message)


class Session:
    """A command's Ray.

    Args:
        folder: The private temporary folder.
        process: The process of Ray.
        messages: The receiving end of its pipe.

    Attributes:
        message: The last message of the process, except lines for people.
        say: Prints lines for people.
    """

    def __init__(self, folder: Path, process: Any, messages: Any):
        self.folder, self.message = folder, Message("not started", "its process died")
        self._process, self._messages = process, messages
        self.say: Callable[[str], None] = say

    def wait(self) -> bool:
        """Wait for POLL_S seconds, or the next message. Return whether the process runs."""
        try:
            if self._messages.poll(POLL_S):
                message = self._messages.recv()
                if message.state == "said":
                    self.say(message.text)
                else:
                    self.message = message
        except (EOFError, ConnectionResetError):
            self._process.join()
            return False
        return True

    def keep_logs(self, folder: Path) -> None:
        """Copy the logs of Ray and its workers to `folder`."""
        with contextlib.suppress(OSError, shutil.Error):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / DRIVER_LOG, folder)
            shutil.copytree(self.folder / "session_latest" / "logs", folder, dirs_exist_ok=True)


class _Process:
    """The process of a session, which waits for its work.

    It is spawned. A forked one would inherit locks that threads of this process hold, and Ray's
    start would wait for them without end.

    Args:
        modules: What it imports while it waits.
    """

    def __init__(self, modules: Sequence[str] = ()):
        context = multiprocessing.get_context("spawn")
        self.messages, sender = context.Pipe(duplex=False)
        work, self._work = context.Pipe(duplex=False)
        self._process = context.Process(target=_main, args=(sender, work, modules))
        self._process.start()
        sender.close()  # so that the end of the process ends the pipe
        work.close()

    @property
    def id(self) -> int | None:
        """Its process id."""
        return self._process.pid

    def do(self, *work: Any) -> None:
        """Give it its work, which are the arguments of `_run`, unless it has died."""
        with contextlib.suppress(OSError):
            self._work.send(work)

    def join(self) -> None:
        """Wait for its end."""
        self._process.join()

    def end(self) -> None:
        """Kill it."""
        self.messages.close()
        self._work.close()
        self._process.kill()
        self._process.join()


_prepared: _Process | None = None  # of the next session


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Start the process of the next session within the context before its work is known.

    It imports its libraries, which takes seconds, while this process imports its own.
    """
    global _prepared
    adopt_orphans()
    resource_tracker.ensure_running()
    _prepared = _Process(LIBRARIES)
    try:
        yield
    finally:
        if _prepared:
            _prepared.end()
            _prepared = None


@contextlib.contextmanager
def session(body: Callable[[Path], Any], start: Callable[[Path], None]) -> Iterator[Session]:
    """Start Ray and call `body` in another process, which ends with the context.

    Args:
        body: Uses Ray. Its argument is the private folder, its result the text of the last message.
        start: Starts Ray, or joins a cluster; its argument is the private folder.
    """
    global _prepared
    adopt_orphans()
    resource_tracker.ensure_running()  # among the processes that are spared
    with private_folder() as folder:
        process, _prepared = _prepared or _Process(), None
        spared = descendants() - {process.id}
        process.do(folder, body, start)
        try:
            yield Session(folder, process, process.messages)
        finally:
            process.end()
            end_descendants(spared)


def call(body: Callable[[Path], Any], start: Callable[[Path], None]) -> Any:
    """Return the result of `body`, which uses Ray; for the arguments see `session`.

    Raises:
        M2FError: What `body` or `start` raised.
        Failed: Ray did not start, or its process died.
    """
    with session(body, start) as ray:
        while ray.wait() and ray.message.state != "ended":
            pass
        state, result, error = ray.message
    if error:
        raise error
    if state != "ended":
        raise Failed(f"Ray has failed: {result or 'its process died'}", fix="run it again")
    return result


def _main(messages: Any, work: Any, modules: Sequence[str]) -> None:
    """Wait for the work of this process, which ends with its parent, and do it."""
    global _sender
    _sender = messages
    os.setsid()
    adopt_orphans()
    folders: list[Path] = []
    threading.Thread(target=_end_with_parent, args=(folders,), daemon=True).start()
    for module in modules:
        import_module(module)
    try:
        folder, body, start = work.recv()
    except EOFError:  # there is no work
        return
    folders.append(folder)
    _run(messages, folder, body, start)


def _run(
    messages: Any, folder: Path, body: Callable[[Path], Any], start: Callable[[Path], None]
) -> None:
    """Run Ray and `body` in this process."""
    _redirect_output(folder / DRIVER_LOG)
    _set_environment(folder)
    try:
        start(folder)
    except M2FError as error:
        messages.send(Message("not started", str(error), error))
        return
    except BaseException as error:  # Ray also calls sys.exit
        messages.send(Message("not started", str(error).strip().partition("\n")[0]))
        return
    # Ray's job server sends SIGTERM to all processes of a command, of which the parent decides.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    messages.send(Message("started"))
    import ray

    try:
        message = Message("ended", body(folder))
    except M2FError as error:
        message = Message("ended", str(error), error)
    ray.shutdown()
    end_descendants()
    messages.send(message)


def _end_with_parent(folders: list[Path]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    end_descendants()
    for folder in folders:
        remove(folder)
    os._exit(1)


def _redirect_output(log: Path) -> None:
    file = log.open("w", buffering=1)
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    sys.stdout = sys.stderr = file


def _set_environment(folder: Path) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(OSError):  # the machine has no such folder
        cache = f"{gettempdir()}/torchinductor_{os.getuid()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)  # is to outlive this command
    os.environ["TMPDIR"] = str(folder)
