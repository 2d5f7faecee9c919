"""Print the step of the newest complete checkpoint of a run, by its folder or URL; -1 without one.

It is a program of its own, so that a job of SLURM can run it in its container.
"""

import sys
from pathlib import PurePosixPath

import fsspec

from pipeline.run.checkpoint import COMMITTED, step_of
from pipeline.run.folder import CHECKPOINTS


def newest_step(run: str) -> int:
    """Return the step of the newest complete checkpoint of a run; -1 if it has none."""
    storage, path = fsspec.core.url_to_fs(run)
    found = storage.glob(f"{path}/{CHECKPOINTS}/step-*/{COMMITTED}")
    return max((step_of(PurePosixPath(name).parent) for name in found), default=-1)


if __name__ == "__main__":
    print(newest_step(sys.argv[1]))
