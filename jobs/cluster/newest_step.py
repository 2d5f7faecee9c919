"""Print the step of the newest complete checkpoint of a run, by its folder or URL; -1 without one.

It is a program of its own, so that a job of SLURM can run it in its container. It imports no torch,
because a job that is warned of its end has little time.
"""

import re
import sys

import fsspec

_COMMITTED = re.compile(r"/checkpoints/step-([0-9]+)-a[0-9]+/COMMITTED")  # see pipeline.run


def newest_step(run: str) -> int:
    """Return the step of the newest complete checkpoint of a run; -1 if it has none."""
    storage, path = fsspec.core.url_to_fs(run)
    found = map(_COMMITTED.search, storage.glob(f"{path}/checkpoints/*/COMMITTED"))
    return max((int(match[1]) for match in found if match), default=-1)


if __name__ == "__main__":
    print(newest_step(sys.argv[1]))
