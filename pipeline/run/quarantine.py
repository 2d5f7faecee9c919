"""Damaged samples of a run: their list, and the limit on their number."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.run import eventlog
from shards.errors import DataError
from shards.jsonl import Row

QUARANTINE = "quarantine.jsonl"
FIELDS = {"step": int, "set": str, "key": str}


class Quarantine:
    """The damaged samples of a run, equal on every rank, and their list in quarantine.jsonl.

    A row of the list has the `step`, `position`, and `epoch`; the `set`, `shard`, and `key` of the
    damaged sample; the `substitute` that was trained on instead; and the `reason`.

    Args:
        folder: The run folder.
        limit: Largest number of distinct damaged samples.
        known: Rows from before a restart.
    """

    def __init__(self, folder: Path, limit: int, known: Sequence[Row]):
        self.path, self.limit = folder / QUARANTINE, limit
        self._samples = {_sample(row) for row in known}

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, step: int, found: Sequence[Row], write: bool) -> None:
        """Add the rows that all ranks found at a step, and append them to the list if `write`.

        Raises:
            DataError: More than `limit` distinct samples are damaged.
        """
        for row in sorted(found, key=lambda row: row["position"]):
            self._samples.add(_sample(row))
            if write:
                eventlog.append_row(self.path, {"step": step, **row})
        if len(self) > self.limit:
            raise DataError(
                f"{len(self)} samples are damaged, data.max_damaged={self.limit} "
                f"(the last: {found[-1]['reason']})",
                where=self.path,
                fix="repair the shards, or raise data.max_damaged",
            )


def _sample(row: Row) -> tuple[str, str]:
    return row["set"], row["key"]
