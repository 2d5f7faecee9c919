"""Import DeepSpeed, and load its C++ helper for collectives on a CPU."""

import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from shards.locks import file_lock

CPU_HELPER = "deepspeed_shm_comm"
DEFAULT_FOLDER = Path(__file__).parents[2] / ".cache" / "torch_extensions"


def import_deepspeed() -> Any:
    """Import DeepSpeed, with defaults for its accelerator and log level in the environment."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


def load_cpu_helper() -> None:
    """Load DeepSpeed's C++ helper for CPU collectives, and compile it the first time.

    DeepSpeed itself would call torch's extension loader in every worker. That loader waits
    forever for a lock file that a killed process left behind. Here processes wait for a lock of
    the kernel instead, which the kernel releases if its holder dies. Whoever holds it removes a
    stale lock file.
    """
    import_deepspeed()
    from deepspeed.ops.op_builder.builder import OpBuilder
    from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder

    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("torch", "deepspeed")]
    root = Path(os.environ.get("M2F_EXTENSIONS_DIR", DEFAULT_FOLDER))
    root = root / f"{sys.implementation.cache_tag}-{'-'.join(versions)}"
    folder = root / CPU_HELPER
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(root / "build.lock"):
        (folder / "lock").unlink(missing_ok=True)
        if not (root / "built").exists():
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
