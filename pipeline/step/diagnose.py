"""Find which image and which tensor make the numbers of a step wrong, by replaying the step.

A replay has the numbers of the step to the bit, because all random numbers are keyed. It changes
nothing: gradients come from `torch.autograd.grad`, so that neither the gradients of the parameters
nor DeepSpeed's hooks take part, and the buffers are put back.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.network import Network, buffers_kept
from pipeline.data.batch import Batch
from pipeline.step.step import GlobalBatch, PlainNetwork, TrainingStep, sum_of

FAR = 10.0  # times the median of the other images: such a norm is far from usual


class Norm(NamedTuple):
    """The norm of one tensor, in the order in which a step computes them.

    Attributes:
        kind: "weight", "output", "loss", "gradient of" an output, or "gradient of weight".
        name: Name of the module, the parameter, or the loss.
        value: L2 norm; for a loss, its value.
    """

    kind: str
    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass
class Replay:
    """What the replay of a rank's part of a step has found; plain data for the other ranks.

    Attributes:
        norms: Norms of its micro-batches; of each tensor the first that is not finite, otherwise
            the greatest.
        samples: For each image: key, position, epoch, and its loss and gradient norm alone.
        outputs: For each image, the norms of the outputs alone.
        error: Why there is no replay, or not all of it; empty if there is.
    """

    norms: list[Norm] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[list[Norm]] = field(default_factory=list)
    error: str = ""

    def first_not_finite(self) -> Norm | None:
        """Return the first tensor that is not finite."""
        return next((norm for norm in self.norms if not math.isfinite(norm.value)), None)


def replay(step: TrainingStep, module: nn.Module, batch: GlobalBatch, *, why_not: str) -> Replay:
    """Replay this rank's part of a step. A failure, such as a full GPU, is a part of the result.

    Args:
        step: The settings of the step; its network is not used.
        module: The network.
        batch: This rank's part of the batch.
        why_not: Why the network cannot be called by one rank alone; empty if it can.
    """
    found = Replay(error=why_not)
    for micro_batch in batch.batches:
        columns = (micro_batch.keys, micro_batch.positions, micro_batch.epochs)
        for key, position, epoch in zip(*columns, strict=True):
            found.samples.append({"key": key, "position": position, "epoch": epoch})
    if why_not:
        return found
    try:
        with undisturbed(module, step.device):
            plain = step.on(PlainNetwork(module, step.device))
            found.norms = _of_micro_batches(plain, module, batch)
            images = [micro_batch.image(b) for micro_batch in batch.batches
                      for b in range(len(micro_batch.keys))]  # fmt: skip
            for sample, image in zip(found.samples, images, strict=True):
                norms = _norms(plain, module, image, batch)
                loss = sum(norm.value for norm in norms if norm.kind == "loss")
                grads = [norm.value for norm in norms if norm.kind == "gradient of weight"]
                sample |= {"loss": loss, "grad_norm": math.hypot(*grads)}
                found.outputs.append([norm for norm in norms if norm.kind == "output"])
    except Exception as error:  # the step itself was taken; this is only a report about it
        found.error = f"{type(error).__name__}: {error}"
    return found


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run a network eagerly within the context, and leave its buffers and torch's draws alone."""
    devices = [device] if device.type == "cuda" else []
    eager = module.eager() if isinstance(module, Network) else nullcontext()
    with (
        torch.compiler.set_stance("force_eager"),
        torch.random.fork_rng(devices),
        buffers_kept(module),
        eager,
    ):
        yield


def _of_micro_batches(step: TrainingStep, module: nn.Module, batch: GlobalBatch) -> list[Norm]:
    """Return the norms of all micro-batches; of each tensor that of the worst."""
    worst: dict[tuple[str, str], Norm] = {}
    for micro_batch in batch.batches:
        norms = _norms(step, module, micro_batch, batch)
        if any(not math.isfinite(norm.value) for norm in norms):
            return norms  # the order in which its tensors were computed tells the first
        for norm in norms:
            known = worst.get(norm[:2])
            worst[norm[:2]] = norm if known is None or norm.value > known.value else known
    return list(worst.values())


def _norms(
    step: TrainingStep, module: nn.Module, micro_batch: Batch, batch: GlobalBatch
) -> list[Norm]:
    """Return the norms of all tensors of one forward and backward pass, in their order."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    seen = [("weight", name, _norm(p)) for name, p in module.named_parameters()]
    forward = True

    def see(kind: str, name: str, tensor: Tensor) -> None:
        if forward or kind != "output":  # recomputation calls modules again
            seen.append((kind, name, _norm(tensor)))

    with observed(module, see):
        losses = step.losses(micro_batch, batch.totals)
        seen += [("loss", name, loss.detach()) for name, loss in losses.items()]
        forward = False
        gradients = torch.autograd.grad(
            sum_of(losses), list(parameters.values()), allow_unused=True
        )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            seen.append(("gradient of weight", name, _norm(gradient)))
    values = torch.stack([value.double() for _, _, value in seen]).tolist()
    return [Norm(kind, name, n) for (kind, name, _), n in zip(seen, values, strict=True)]


@contextmanager
def observed(module: nn.Module, see: Callable[[str, str, Tensor], None]) -> Iterator[None]:
    """Show the outputs of all modules, and their gradients, within the context.

    Args:
        module: The network.
        see: Receives "output" or "gradient of", the name of the module, and each tensor.
    """

    def watch(name: str, output: Any) -> None:
        for tensor in _tensors(output):
            see("output", name, tensor)
            if tensor.requires_grad:
                tensor.register_hook(lambda g: see("gradient of", name, g))

    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name, part in module.named_modules()
        if name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of floating-point numbers in the output of a module."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from (tensor for value in output.values() for tensor in _tensors(value))
    elif isinstance(output, list | tuple):
        yield from (tensor for value in output for tensor in _tensors(value))


def _norm(tensor: Tensor) -> Tensor:
    """Return the L2 norm, float64, so that only tensors that are not finite have no finite norm."""
    return torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)
