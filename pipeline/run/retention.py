"""Which checkpoints of a run are kept, in its folder and on storage."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.run.checkpoint import committed, folders, step_of


def outdated_in(checkpoints: Path, step: int, keep: int, best: int | None) -> list[Path]:
    """Return the checkpoints in a folder that are `outdated`; all else stays."""
    names = [folder.name for folder in folders(checkpoints)]
    whole = [folder.name for folder in committed(checkpoints)]
    return [checkpoints / name for name in outdated(names, whole, step, keep, best)]


def outdated(
    names: Sequence[str], whole: Sequence[str], step: int, keep: int, best: int | None
) -> list[str]:
    """Return all checkpoints except the newest `keep` up to `step` and the one at step `best`.

    Those without COMMITTED, which a crash left before the checkpoint at `step` was written, are
    outdated too. Committed ones past `step` were skipped as damaged: they stay and do not count.

    Args:
        names: Names that `name_of` returns.
        whole: Those with COMMITTED, newest first.
        step: The step of the newest checkpoint that counts.
        keep: Number of checkpoints.
        best: A step; None if no checkpoint has a score.
    """
    past = [name for name in whole if step_of(Path(name)) > step]
    kept = whole[: len(past) + keep]
    return [name for name in names if name not in kept and step_of(Path(name)) != best]
