"""Tensors by name from a file or folder of weights, without executing what it holds."""

import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

# What a folder may hold, the preferred first: transformers' files, then a checkpoint of ours.
IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "state.safetensors",
)
_WRAPPERS = ("model", "state_dict")  # keys under which training programs save their weights


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors`, `.pkl` or torch file, or of a folder with one of them.

    A pickle is read by an unpickler that knows numpy arrays and tensors and nothing else; torch
    files are read with `weights_only`.

    Raises ValueError, without the setting's name, for what is not there, cannot be read or is
    anything but tensors by name.
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
    except Exception as error:  # damage shows itself in as many ways as there are bytes
        raise ValueError(
            f"{path.name} is damaged or holds more than tensors: {error or type(error).__name__}"
        ) from error


def _read_parts(index: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint in several files."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        if Path(name).name != name:
            raise ValueError(f"{index.name} names {name!r}, which is no file beside it")
        tensors |= read(index.parent / name)
    return tensors


def _tensors(document: Any) -> dict[str, Tensor]:
    """Tensors by name of a loaded document, out of its wrapper."""
    for key in _WRAPPERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict):
        raise ValueError(f"a {type(document).__name__} where tensors by name are expected")
    return {str(name): _tensor(name, value) for name, value in document.items()}


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        value = np.asarray(value)
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    raise ValueError(f"{name} is a {type(value).__name__}, no array of numbers")


def _latin1(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does where numpy's old pickles call it."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """The storage of a pickled tensor; torch's own function would unpickle it unguarded."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
} | {
    (f"{package}.{module}", name): getattr(getattr(np._core, module), name)
    for package in ("numpy.core", "numpy._core")  # before numpy 2, and since
    for module, name in (
        ("multiarray", "_reconstruct"),
        ("multiarray", "scalar"),
        ("numeric", "_frombuffer"),
    )
}


class _Unpickler(pickle.Unpickler):
    """Knows only what arrays of numbers are made of."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")  # Python 2 wrote the oldest files

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not loaded")
        return _ALLOWED[module, name]
