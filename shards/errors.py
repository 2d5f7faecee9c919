"""What ends a command. Messages are one line: the file or key, the value, the fix."""


class DataError(ValueError):
    """The data is wrong or incomplete; the program exits 3."""


class UsageError(ValueError):
    """The command, a path or the configuration is wrong; the program exits 2."""


class Failed(RuntimeError):
    """A disk, a network or a process failed, and no input is to blame; the program exits 1."""
