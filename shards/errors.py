"""The errors that end a command: data that says where, what, and how to fix it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: What is wrong, with the value.
        where: The file, URL, setting, or option that it concerns; "" if `what` names it.
        fix: What the user can do about it; "" if there is nothing to suggest.
    """

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.fix}" if self.fix else text


class M2FError(Exception):
    """Base class of the errors that end a command with one line and an exit code.

    The parts stay separate until the command line prints them. A caller that knows a better
    location (a URL instead of the folder it was downloaded to, a setting instead of a path)
    replaces `where` instead of editing text.

    Args:
        what: What is wrong, with the value.
        where: The file, URL, setting, or option that it concerns.
        fix: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", fix: str = ""):
        super().__init__(what)
        self.problem = Problem(what, str(where), fix)

    def __str__(self) -> str:
        return str(self.problem)

    def __reduce__(self) -> tuple[Any, ...]:
        # The attributes (the problem, notes, and those of subclasses) are restored after
        # `__new__`; `__init__` does not run, because subclasses take other arguments.
        return _without_init, (type(self), self.args), self.__dict__

    def at(self, where: object) -> Self:
        """Return a copy of the error with another `where`."""
        error = copy.copy(self)
        error.problem = replace(self.problem, where=str(where))
        return error


class DataError(M2FError, ValueError):
    """The data is wrong or incomplete."""

    exit_code = 3


class UsageError(M2FError, ValueError):
    """The command, a path, or the configuration is wrong."""

    exit_code = 2


class Failed(M2FError, RuntimeError):
    """A disk, a network, or a process failed, and no input is to blame."""

    exit_code = 1


class LoaderError(Failed):
    """A loader process died, or none delivers a batch. A restart from a checkpoint may help."""


def _without_init(kind: type[M2FError], args: tuple[Any, ...]) -> M2FError:
    return kind.__new__(kind, *args)


def some_of(names: Sequence[str], most: int = 20) -> str:
    """Return the first names and the number of the others, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
