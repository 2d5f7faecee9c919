"""Damaged samples of a run: which ones, where they stood, and when there are too many."""

from pathlib import Path
from typing import Any

from shards.errors import DataError
from shards.jsonl import append

QUARANTINE = "quarantine.jsonl"


class Quarantine:
    """`quarantine.jsonl` of a run, and its distinct samples, the same on every rank.

    A row names `step`, `position` and `epoch`; `set`, `shard` and `key` of the damaged sample; the
    `substitute` that was trained on instead; and the `reason`. Raises DataError, on every rank,
    when more than `limit` samples of the sets are damaged.
    """

    def __init__(self, folder: Path, limit: int, known: list[dict[str, Any]]):
        self.path, self.limit = folder / QUARANTINE, limit
        self._samples = {_sample(row) for row in known}

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, step: int, found: list[dict[str, Any]], write: bool) -> None:
        """Take in what all ranks found at a step; one of them is to `write` it."""
        for row in sorted(found, key=lambda row: row["position"]):
            self._samples.add(_sample(row))
            if write:
                append(self.path, {"step": step, **row})
        if len(self) > self.limit:
            raise DataError(
                f"{len(self)} samples are damaged, data.max_damaged={self.limit}: see {self.path} "
                f"(the last: {found[-1]['reason']})"
            )


def _sample(row: dict[str, Any]) -> tuple[str, str]:
    return row["set"], row["key"]
