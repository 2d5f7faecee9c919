"""Read the tensors of a file or folder of weights without executing any code in it."""

import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric
from safetensors.torch import load_file
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

# File names that are looked for in a folder, in this order: those of transformers, then that of
# this project's checkpoints.
IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "state.safetensors",
)
_WRAPPERS = ("model", "state_dict")  # keys under which training programs save their weights


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by name.

    A pickle is read by an unpickler that accepts only numpy arrays and tensors; torch files are
    read with `weights_only`.

    Args:
        path: A `.safetensors`, `.pkl`, or torch file, or a folder that contains one of
            `IN_FOLDERS`.

    Raises:
        ValueError: The file is missing, cannot be read, or holds anything except named tensors. The
            message does not contain the path; the caller adds it.
    """
    if path.is_dir():
        found = [path / name for name in IN_FOLDERS if (path / name).is_file()]
        if not found:
            raise ValueError(f"the folder has none of {', '.join(IN_FOLDERS)}")
        path = found[0]
    try:
        if path.name.endswith(".index.json"):
            return _read_parts(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".pkl":
            return _tensors(_Unpickler(io.BytesIO(path.read_bytes())).load())
        return _tensors(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can raise almost any class
        raise ValueError(
            f"{path.name} is damaged or holds more than tensors: {error or type(error).__name__}"
        ) from error


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that is split over several files."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        if Path(name).name != name:
            raise ValueError(f"{index.name} names {name!r}, which is not in the same folder")
        tensors |= read(index.parent / name)
    return tensors


def _tensors(document: Any) -> dict[str, Tensor]:
    """Return the named tensors of an unpickled object, which may be wrapped in dictionaries."""
    for key in _WRAPPERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict):
        raise ValueError(f"it holds a {type(document).__name__} instead of a dictionary of tensors")
    return {str(name): _tensor(name, value) for name, value in document.items()}


def _tensor(name: str, value: Any) -> Tensor:
    """Return a tensor or an array of numbers as a contiguous tensor in native byte order."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        value = np.asarray(value)
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    raise ValueError(f"{name} is a {type(value).__name__}, not an array of numbers")


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, which old pickles of numpy call for the bytes of arrays."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """Return the storage of a pickled tensor.

    The bytes are themselves a torch file. This function replaces torch's `_load_from_bytes`, which
    would unpickle them without any restriction.
    """
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


# The only classes and functions that a pickle may name. Names outside this table are an error, so
# that nothing else can be called while a file of unknown origin is read.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
} | {
    (f"{package}.{module}", name): getattr(functions, name)
    for package in ("numpy.core", "numpy._core")  # before numpy 2, since numpy 2
    for module, functions, name in (
        ("multiarray", multiarray, "_reconstruct"),
        ("multiarray", multiarray, "scalar"),
        ("numeric", numeric, "_frombuffer"),
    )
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that loads nothing but arrays of numbers."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 wrote the oldest files

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"a pickle asks for {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]
