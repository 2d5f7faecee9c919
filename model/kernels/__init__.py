"""Operations that have several implementations, and the choice between them.

Every operation has an implementation called `reference`, in a few lines of plain torch, which runs
on every device. The others are faster and agree with it up to rounding; some run on some devices
only. Unless another is chosen, an operation runs the first implementation in `OPERATIONS` for the
device of its input.

The environment variable `M2F_KERNELS` and the context manager `use` choose others:

    M2F_KERNELS=reference                           the reference of every operation
    M2F_KERNELS=token_linear=reference              the reference of one operation
    M2F_KERNELS=reference,deformable_attention=cpu  the reference of all but one
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from types import MappingProxyType

import torch

VARIABLE = "M2F_KERNELS"
REFERENCE = "reference"


def _everywhere(device: torch.device) -> bool:
    return True


def _on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def _with_triton(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("triton") is not None


# The implementations of each operation, the preferred one first, and the devices they run on.
OPERATIONS: Mapping[str, Mapping[str, Callable[[torch.device], bool]]] = {
    # model.deformable_attention
    "deformable_attention": {"cpu": _on_cpu, REFERENCE: _everywhere, "gather": _everywhere},
    # model.deformable_self_attention: the same from raw projections
    "deformable_self_attention": {"triton": _with_triton, REFERENCE: _everywhere},
    # pipeline.step.draws: random numbers of many keys; each implementation gives others
    "uniform": {"triton": _with_triton, REFERENCE: _everywhere},
    # model.token_linear: products of [B, N, C] with a matrix
    "token_linear": {"onednn": _on_cpu, REFERENCE: _everywhere},
    # model.points: feature maps at points
    "sample_rows": {"triton": _with_triton, REFERENCE: _everywhere},
    # model.segment: masks at the image's size, and per pixel the first mask of the largest value
    "resize_masks": {"bands": _everywhere, REFERENCE: _everywhere},
    "first_largest": {"minimum": _everywhere, REFERENCE: _everywhere},
}

_used: list[Mapping[str, str]] = []  # choices of the open `use` contexts, the innermost last


@torch.compiler.assume_constant_result
def implementation(operation: str, device: torch.device) -> str:
    """Return the name of the implementation that an operation runs on a device.

    A network that `torch.compile` has compiled keeps the implementation that it was compiled with.

    Raises:
        ValueError: The implementation that was chosen does not run on the device, or `M2F_KERNELS`
            has an unknown value.
    """
    known = OPERATIONS[operation]
    name = choices().get(operation)
    if name is None:
        return next(name for name, runs_on in known.items() if runs_on(device))
    if not known[name](device):
        raise ValueError(
            f"{operation}={name} does not run on {device.type}; "
            f"choose {operation}={REFERENCE} or leave {operation} out of {VARIABLE}"
        )
    return name


def choices() -> Mapping[str, str]:
    """Return the operations whose implementation was chosen, and that implementation.

    Raises:
        ValueError: `M2F_KERNELS` has an unknown value.
    """
    if _used:
        return _used[-1]
    return _parse(os.environ.get(VARIABLE, ""))


@contextmanager
def use(text: str) -> Iterator[None]:
    """Choose implementations for the whole process while the context is open.

    Call backward inside the context too, because it may compute layers of the network again.

    Args:
        text: Replaces the value of `M2F_KERNELS`, in the same form; "" chooses by device.

    Raises:
        ValueError: The text names an unknown operation or implementation.
    """
    _used.append(_parse(text))
    try:
        yield
    finally:
        _used.pop()


@functools.cache
def _parse(text: str) -> Mapping[str, str]:
    """Return the choices in a value of `M2F_KERNELS`; later parts override earlier ones."""
    chosen: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        operation, _, name = part.partition("=")
        if part == REFERENCE:
            chosen = dict.fromkeys(OPERATIONS, REFERENCE)
        elif name in OPERATIONS.get(operation, ()):
            chosen[operation] = name
        else:
            known = [f"{key}={value}" for key, values in OPERATIONS.items() for value in values]
            raise ValueError(
                f"{VARIABLE}={text}: {part} is unknown; known: {', '.join([REFERENCE, *known])}"
            )
    return MappingProxyType(chosen)
