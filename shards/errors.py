"""The errors that end a command: data that says where, what, and how to fix it."""

from dataclasses import dataclass


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

    The parts stay separate until the command line prints them, so that a caller that knows a
    better name for the place (a URL instead of the folder it was fetched to, a setting instead of
    a path) replaces `where` instead of editing text.

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

    def __reduce__(self):
        return _restore, (type(self), self.problem)

    def at(self, where: object) -> "M2FError":
        """Return the same error with another `where`."""
        return _restore(type(self), Problem(self.problem.what, str(where), self.problem.fix))


class DataError(M2FError, ValueError):
    """The data is wrong or incomplete."""

    exit_code = 3


class UsageError(M2FError, ValueError):
    """The command, a path, or the configuration is wrong."""

    exit_code = 2


class Failed(M2FError, RuntimeError):
    """A disk, a network, or a process failed, and no input is to blame."""

    exit_code = 1


def _restore(kind: type[M2FError], problem: Problem) -> M2FError:
    return kind(problem.what, where=problem.where, fix=problem.fix)
