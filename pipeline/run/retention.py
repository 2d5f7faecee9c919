"""Which checkpoints of a run are kept, in its folder and on storage."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.run.checkpoint import COMMITTED, committed, folders, step_of


def prune(checkpoints: Path, step: int, keep: int, best: int | None) -> None:
    """Remove the checkpoints in a folder that are `outdated`.

    COMMITTED is removed first, so that no partly removed folder has it. What is not one of
    `folders` stays.
    """
    names = [folder.name for folder in folders(checkpoints)]
    whole = [folder.name for folder in committed(checkpoints)]
    for name in outdated(names, whole, step, keep, best):
        if name in whole:
            (checkpoints / name / COMMITTED).unlink()
        shutil.rmtree(checkpoints / name)


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
