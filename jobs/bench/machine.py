"""The machine, the date, and the library versions of a measurement."""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from jobs import __version__
from pipeline.run.versions import versions

LIBRARIES = (
    *("torch", "deepspeed", "ray", "transformers", "webdataset", "numpy", "triton"),
    *("pycocotools", "torchmetrics", "hotcoco"),
)


def facts() -> dict[str, Any]:
    """Return what a reader needs to know about a figure, as JSON types."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "gpu": _gpu_model(),
        },
        "versions": {
            "mask2former-at-scale": __version__,
            "python": platform.python_version(),
            **versions(LIBRARIES),
        },
    }


def _cpu_model() -> str:
    """Return the model of the CPU, which an ARM kernel does not list in /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    import torch  # here, because `bench report` needs no torch

    if not torch.cuda.is_available():
        return None
    model = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        found = []
    return f"{model}, driver {found[0]}" if found else model
