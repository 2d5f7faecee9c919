"""What kills cost a run: steps that are repeated, and the time until the next step.

`drill` trains `tiny` on painted shapes with two workers: undisturbed, and with 30 SIGKILLs.
"""

import tempfile
from pathlib import Path

from jobs import bench
from jobs.drill import drill

KILLS = 30


def rows() -> list[bench.Row]:
    """Return the rows of the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        return drill("tiny", [], KILLS, seed=0, out=Path(folder))["rows"]
