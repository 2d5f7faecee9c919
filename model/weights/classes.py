"""The classes of a file of weights: their names, and the rows of the class head."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.network import Network

CLASS_HEAD = ("masked_decoder.class_head.weight", "masked_decoder.class_head.bias")
# The class names among the tensors of an exported pickle, as JSON in uint8 [N]. A pickle with
# nothing but arrays needs no reader that can build other objects.
CLASS_NAMES = "class_names"
_CONFIG = "config.json"  # of transformers
_GENERIC = re.compile(r"LABEL_\d+")  # a name that transformers gives to a class without a name


@dataclass(frozen=True)
class ClassRows:
    """Where the rows of a network's class head come from.

    Attributes:
        rows: For each class of the network its row in the file, or None to keep the initial values.
        text: What was compared or assumed, for the log; "" if the file has no class head.
    """

    rows: Sequence[int | None]
    text: str


# Chooses the rows, given the class names in the file, or None, and the number of its classes.
Match = Callable[[list[str] | None, int], ClassRows]


def same_number(classes: int) -> Match:
    """Return a `Match` that takes the rows as they are if the file has the same number of classes.

    It serves callers who do not know the names of their classes.
    """

    def match(_: list[str] | None, count: int) -> ClassRows:
        rows = list(range(classes)) if count == classes else [None] * classes
        return ClassRows(rows, "the class names were not compared")

    return match


def encode_names(names: Sequence[str]) -> np.ndarray:
    """Return class names as the array that `CLASS_NAMES` describes."""
    return np.frombuffer(json.dumps(list(names)).encode(), np.uint8)


def take_names(path: Path, tensors: dict[str, Tensor]) -> list[str] | None:
    """Return the class names that a file or folder gives, and remove them from its tensors.

    They are in the array `CLASS_NAMES`, or in the config of transformers beside the tensors.

    Returns:
        The names, or None if there are none.

    Raises:
        ValueError: The names are damaged.
    """
    encoded = tensors.pop(CLASS_NAMES, None)
    if encoded is not None:
        return _as_names(CLASS_NAMES, encoded.numpy().tobytes(), lambda document: document)
    config = (path if path.is_dir() else path.parent) / _CONFIG
    if not any(name.startswith("class_predictor.") for name in tensors) or not config.is_file():
        return None
    names = _as_names(_CONFIG, config.read_bytes(), _labels)
    return None if all(map(_GENERIC.fullmatch, names)) else names


def _as_names(source: str, text: bytes, part: Callable[[Any], Any]) -> list[str]:
    """Return the names in a part of a JSON document."""
    try:
        names = part(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{source} has no readable class names ({error!r})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{source} has no readable class names")
    return names


def _labels(config: Any) -> list[Any]:
    """Return the labels of a config of transformers, in the order of their numbers."""
    labels = {int(number): label for number, label in config.get("id2label", {}).items()}
    return [labels[number] for number in range(len(labels))]


def fits_class_head(shapes: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> bool:
    """Return whether a file has the class head of a network, perhaps for other classes.

    Args:
        shapes: The shapes in the file, under the names of this project.
        expected: The shapes in the network.
    """
    if not all(shapes.get(name) for name in CLASS_HEAD):
        return False
    weight, bias = (shapes[name] for name in CLASS_HEAD)
    return weight[1:] == expected[CLASS_HEAD[0]][1:] and bias == weight[:1] and bias[0] > 0


def take_rows(
    model: Network, found: Mapping[str, Tensor], rows: Sequence[int | None]
) -> dict[str, Tensor]:
    """Return the class head of a network with the rows that a file has for its classes.

    The row for "no object" is taken if that of any class is.

    Args:
        model: The network, which may be on the device "meta".
        found: The tensors of the file under the names of this project.
        rows: For each class of the network its row in the file, or None.

    Returns:
        The tensors of CLASS_HEAD; none if the file has no row for any class.
    """
    targets = [index for index, row in enumerate(rows) if row is not None]
    sources = [row for row in rows if row is not None]
    if not sources:
        return {}
    state = model.state_dict()
    head = {}
    for name in CLASS_HEAD:
        head[name] = torch.empty(state[name].shape, dtype=state[name].dtype)
        if not state[name].is_meta:
            head[name].copy_(state[name])
        head[name][[*targets, -1]] = found[name][[*sources, -1]].to(head[name].dtype)
    return head


@torch.no_grad()
def permute_classes(model: Network, rows: Sequence[int]) -> None:
    """Put the classes of a network in another order; `rows[c]` is the old index of class c."""
    head = model.masked_decoder.class_head
    for tensor in (head.weight, head.bias):
        tensor.copy_(tensor[[*rows, -1]])
