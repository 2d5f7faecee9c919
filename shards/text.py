"""Text from files and from the network, made safe to print."""


def printable(text: object) -> str:
    """Return text for a terminal: every character that cannot be printed becomes an escape.

    Names of files, samples, and classes can hold terminal escapes, line breaks, characters that
    change the direction of writing, and bytes that are not UTF-8.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def say(line: str) -> None:
    """Print a line of a report."""
    print(printable(line))
