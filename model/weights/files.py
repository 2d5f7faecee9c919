"""Read the tensors of a file or folder of weights without executing any code in it."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.weights.pickles import read_pickle

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

    A pickle of numpy arrays is interpreted by `read_pickle`; torch files are read with
    `weights_only`.

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
            return _tensors(read_pickle(path.read_bytes()))
        _check_sizes(path)
        return _tensors(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can raise almost any class
        raise ValueError(
            f"{path.name} is damaged or holds more than tensors: {error or type(error).__name__}"
        ) from error


def _check_sizes(path: Path) -> None:
    """Check that a torch file, which is a zip, does not expand: torch compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            if sum(part.file_size for part in parts.infolist()) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")


def _read_parts(index: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that is split over several files."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise ValueError(f"{index.name} names {name!r}, which is not a file beside it")
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
    """Return a dense tensor or an array of numbers as a tensor."""
    if isinstance(value, Tensor):
        is_plain = value.layout == torch.strided and value.device.type == "cpu"
        if not is_plain or value.is_complex() or value.is_quantized:
            raise ValueError(f"{name} is not a dense tensor of real numbers")
        return value.detach()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    raise ValueError(f"{name} is a {type(value).__name__}, not an array of numbers")
