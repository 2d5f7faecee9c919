"""Ray as long as one command runs: on this machine, reachable by this user alone, or a cluster.

Ray's driver lives in a process of its own below the command, in its own session. The command stays
in charge of the terminal and the signals: Ctrl-C does not reach Ray's processes, a crash of Ray is
one line, and at the end, however it comes, no process and no temporary file is left. A cluster
ends the workers of a driver that has died.
"""

import contextlib
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

from jobs.cluster.package import python_path
from jobs.processes import adopt_orphans, descendants, end_descendants
from shards.errors import Failed, M2FError
from shards.scratch import private_folder, remove
from shards.text import say

STARTS = 3  # Ray gives its processes 30 s, which a loaded machine may exceed
POLL_S = 0.2
DRIVER_LOG = "driver.log"
OBJECT_STORE_BYTES = 200 * 2**20

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

# Nothing listens beyond this machine, and Ray answers only who knows the token. The user's values
# for a cluster do not apply here.
PRIVATE = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for: bind to the loopback address
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
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


def start_ray(folder: Path, cpus: int) -> None:
    """Start Ray on this machine, with its files in a private folder.

    Args:
        folder: The private folder.
        cpus: Number of CPUs that Ray may assign.
    """
    os.environ |= PRIVATE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
        runtime_env={"env_vars": {"PYTHONPATH": python_path()}},
        _temp_dir=str(folder),
    )


@contextlib.contextmanager
def session(body: Callable[[Path], Any], start: Callable[[Path], None]) -> Iterator[Session]:
    """Start Ray and call `body` in a new process, which ends with the context.

    The process is spawned. A forked one would inherit locks that threads of this process hold, and
    Ray's start would wait for them without end.

    Args:
        body: Uses Ray. Its argument is the private folder, its result the text of the last message.
        start: Starts Ray, or joins a cluster; its argument is the private folder.
    """
    adopt_orphans()
    resource_tracker.ensure_running()  # among the processes that are spared
    spared = descendants()
    with private_folder() as folder:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_main, args=(sender, folder, body, start)
        )
        process.start()
        sender.close()  # so that the end of the process ends the pipe
        try:
            yield Session(folder, process, receiver)
        finally:
            receiver.close()
            process.kill()
            process.join()
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


def _main(
    messages: Any, folder: Path, body: Callable[[Path], Any], start: Callable[[Path], None]
) -> None:
    """Run Ray and `body` in this process, which ends with its parent."""
    global _sender
    _sender = messages
    os.setsid()
    adopt_orphans()
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
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


def _end_with_parent(folder: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    end_descendants()
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
