"""Activations that backward computes again because that is cheaper than keeping them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return `function(*inputs)`, of which autograd keeps only the inputs.

    Backward runs the function again, up to the last tensor that backward needs; an operation after
    it, such as a product at the end, is not repeated. The function must not draw random numbers.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
