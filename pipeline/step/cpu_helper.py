"""Import DeepSpeed, and load its C++ helper for collectives on a CPU."""

import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from shards.errors import Failed
from shards.locks import file_lock

CPU_HELPER = "deepspeed_shm_comm"
CHECKOUT = Path(__file__).parents[2]


def import_deepspeed() -> Any:
    """Import DeepSpeed, with defaults for its accelerator and log level in the environment."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def helper_folder() -> Path:
    """Return the folder of the helper for these versions of Python, torch, and DeepSpeed.

    It is below M2F_EXTENSIONS_DIR if that is set. Otherwise it is in the Python environment, which
    several checkouts may share, or in the checkout if the environment cannot be written.
    """
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("torch", "deepspeed")]
    name = f"{sys.implementation.cache_tag}-{'-'.join(versions)}"
    if chosen := os.environ.get("M2F_EXTENSIONS_DIR"):
        return Path(chosen) / name
    shared = Path(sys.prefix) / "torch_extensions" / name
    is_usable = (shared / "built").exists() or os.access(sys.prefix, os.W_OK)
    return shared if is_usable else CHECKOUT / ".cache" / "torch_extensions" / name


def is_compiled() -> bool:
    """Return whether the helper needs no compilation."""
    return (helper_folder() / "built").exists()


def load_cpu_helper() -> None:
    """Load DeepSpeed's C++ helper for CPU collectives, and compile it the first time.

    DeepSpeed itself would call torch's extension loader in every worker. That loader waits
    forever for a lock file that a killed process left behind. Here processes wait for a lock of
    the kernel instead, which the kernel releases if its holder dies. Whoever holds it removes a
    stale lock file. A compiled helper is loaded without a lock, also from a read-only environment.
    """
    import_deepspeed()
    from deepspeed.ops.op_builder.builder import OpBuilder
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    root = helper_folder()
    folder = root / CPU_HELPER
    if not is_compiled():
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(root / "build.lock"):
            if not is_compiled():
                (folder / "lock").unlink(missing_ok=True)
                os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
                ShareMemCommBuilder().load(verbose=False)
                (root / "built").touch()
    if CPU_HELPER not in OpBuilder._loaded_ops:
        OpBuilder._loaded_ops[CPU_HELPER] = _import_library(folder / f"{CPU_HELPER}.so")


def _import_library(path: Path) -> Any:
    """Import a compiled extension module by the path of its file."""
    loader = importlib.machinery.ExtensionFileLoader(CPU_HELPER, str(path))
    spec = importlib.util.spec_from_file_location(CPU_HELPER, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def compile_alone() -> None:
    """Compile the helper in another process, so that this one does not import DeepSpeed.

    Raises:
        Failed: The compiler failed.
    """
    program = [sys.executable, "-m", "pipeline.step.cpu_helper"]
    done = subprocess.run(program, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        found = next(
            (line for line in lines if "error" in line.lower()), lines[-1] if lines else ""
        )
        raise Failed(
            f"DeepSpeed's CPU helper does not compile: {found}",
            where=helper_folder(),
            fix="install a C++ compiler and Python.h (on Debian: apt install g++ python3-dev)",
        )


if __name__ == "__main__":
    load_cpu_helper()
