"""Record the losses of the golden trainings on this machine: `python -m tests.golden.make`.

Run it only after a change that is meant to change the numbers, and say in the commit why they
change. The files also name the versions and the CPU that made them.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from tests.golden.recipe import DTYPES, PRECISIONS, train

FOLDER = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "numpy", "scipy")


def path(name: str) -> Path:
    """Return the file of a case."""
    return FOLDER / f"{name}.json"


def write(name: str, losses: dict[str, list[float]]) -> None:
    """Write the losses of a case, with the versions and the machine that made them."""
    document = {
        "versions": {"python": platform.python_version()} | {x: version(x) for x in LIBRARIES},
        "machine": {
            "cpu": _cpu(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "losses": losses,
    }
    path(name).write_text(json.dumps(document, indent=1) + "\n")


def _cpu() -> str:
    """Return the name of the processor's model."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    for case, precisions in PRECISIONS.items():
        write(case, {precision: train(case, DTYPES[precision]) for precision in precisions})
