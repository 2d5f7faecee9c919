"""The files in which W&B keeps a run on this machine, and the last step that they hold."""

import glob
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A file has a header of 7 bytes, then the log format of LevelDB with protobuf records.
_FILE_HEADER, _BLOCK, _HEADER = 7, 32 * 1024, struct.Struct("<IHB")
_FULL, _FIRST, _LAST = 1, 2, 4


def last_step(folder: Path, run_id: str) -> int:
    """Return the last step of a run in the files of W&B below a run folder; -1 without a step."""
    paths = folder.glob(f"wandb/*run-*-{glob.escape(run_id)}/run-*.wandb")
    steps = (
        record.history.step.num
        for path in paths
        for record in records(path)
        if record.HasField("history")
    )
    return max(steps, default=-1)


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a file of W&B, up to the first that a crash has damaged."""
    # Importing W&B makes folders for temporary files, which a command that trains is not to leave.
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    content = path.read_bytes()
    at, parts = _FILE_HEADER, b""
    while at + _HEADER.size <= len(content):
        rest = _BLOCK - at % _BLOCK
        if rest < _HEADER.size:  # the rest of a block is padding
            at += rest
            continue
        checksum, length, kind = _HEADER.unpack_from(content, at)
        payload = content[at + _HEADER.size : at + _HEADER.size + length]
        if zlib.crc32(bytes([kind]) + payload) != checksum:
            return
        at += _HEADER.size + length
        parts = payload if kind in (_FULL, _FIRST) else parts + payload
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)
