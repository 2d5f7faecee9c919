"""What a server reports about a file."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class FileInfo:
    """What a server reports about a file.

    Attributes:
        bytes: Its size; None if the server does not report it.
        changed: When it was written, in ns since the epoch; 0 if the server does not report it.
    """

    bytes: int | None
    changed: int


def changed(info: dict[str, Any]) -> int:
    """Return the time of the last change, in ns since the epoch, from an entry of fsspec."""
    # of s3; of file, sftp, and gs; of abfs; of memory
    for key in ("LastModified", "mtime", "last_modified", "created"):
        when = info.get(key)
        if isinstance(when, datetime):
            return int(when.timestamp() * 1e9)
        if isinstance(when, int | float):
            return int(when * 1e9)
    return 0
