"""Signals that ask a command to end: Ctrl-C, SIGTERM of a scheduler, and the end of a terminal."""

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from shards.errors import M2FError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEAT_S = 0.5  # `timeout` and some shells send one signal twice; people need longer


class Interrupted(M2FError):
    """Ctrl-C ended the command."""

    exit_code = 130  # 128 + SIGINT, as shells report it


class Preempted(M2FError):
    """A scheduler or the end of the terminal ended the command (SIGTERM, SIGHUP)."""

    exit_code = 75  # EX_TEMPFAIL: the same command may succeed later


class Ended(BaseException):
    """A signal ends the command. Libraries that catch KeyboardInterrupt do not catch this."""


class Requests:
    """The signals that have arrived, even if Python raised their exception where it is dropped.

    Attributes:
        first: The first signal; None before it.
        at_once: Whether Ctrl-C was pressed after that.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the signals of an earlier command."""
        self.first: signal.Signals | None = None
        self.at_once = False
        self._time = 0.0

    def end(self, number: int, _: object) -> NoReturn:
        """Handle a signal: end the command, with the clean-up of everything it has open.

        Raises:
            Ended: Always.
        """
        self.receive(number, _)
        raise Ended

    def receive(self, number: int, _: object) -> None:
        """Handle a signal: remember it."""
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.first is None:
            self.first, self._time = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._time > REPEAT_S:
            self.at_once = True

    def error(self, state: str = "", *, where: object = "", fix: str = "") -> M2FError:
        """Return the error that the command ends with; `state` says what is left to resume from."""
        assert self.first is not None
        kind = Interrupted if self.first == signal.SIGINT else Preempted
        what = f"stopped by {self.first.name}"
        return kind(f"{what}; {state}" if state else what, where=where, fix=fix)


requests = Requests()


@contextlib.contextmanager
def handled(receive: Callable[[int, object], None]) -> Iterator[None]:
    """Call `receive` for each of SIGNALS within the context, except those that are ignored.

    A command under `nohup` ignores SIGHUP, and one that a script starts with `&` ignores Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    wanted = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    for number in wanted:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number in wanted:
            signal.signal(number, before[number])


def _leave_terminal() -> None:
    """Drop what is printed from now on if it went to the terminal, because printing would fail.

    `isatty` is false once the terminal is gone.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if stat.S_ISCHR(
                os.fstat(descriptor).st_mode
            ):  # isatty is False if the terminal is gone
                os.dup2(null, descriptor)
    os.close(null)
