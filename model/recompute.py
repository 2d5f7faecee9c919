"""Activations that backward computes again, where that is cheaper than keeping them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Any], *inputs: Any) -> Any:
    """`function(*inputs)`, of which autograd keeps the inputs only; nothing random in it.

    Backward runs it again, but no further than to the last tensor that was to be kept: a product
    at the end is not made twice.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
