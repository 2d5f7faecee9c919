"""Find a worker whose machine computes or keeps wrong numbers, by computing a part of a step twice.

In an audited step, each worker takes digests of what it computes for one of its micro-batches: the
outputs of all modules, their gradients, and the gradients of all weights. The next worker computes
the same micro-batch, and its digests have to be equal. If two differ, all workers compute the
micro-batch once more, and the majority is right.

Before the step, the weights are compared with those of the other workers, and with those after the
update before. GPUs add in an order that varies, so that only the weights are compared there.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.distributed import all_gather, rank_and_world
from pipeline.step.diagnose import observed, undisturbed
from pipeline.step.step import GlobalBatch, PlainNetwork, TrainingStep, sum_of

Digests = dict[str, list[int]]  # by the name of a tensor; several if it is computed repeatedly


class Found(NamedTuple):
    """What an audit has found.

    Attributes:
        workers: The workers with wrong numbers; if no majority is right, those that disagree.
        what: Name of the first tensor that differs.
    """

    workers: list[int]
    what: str


class Audit:
    """Audits every n-th step. All ranks must call each method.

    Args:
        every: The interval in steps; None: no step is audited.
        step: The training step, which lets the audit watch its micro-batches.
        module: The network, whose weights are whole on every rank.
    """

    def __init__(self, every: int | None, step: TrainingStep, module: nn.Module):
        self._every, self._step, self._module = every, step, module
        self._rank, self._world = rank_and_world()
        self._kept: Digests | None = None  # of the weights after the last update
        self._number, self._seen = 0, Digests()

    def before(self, step: int) -> Found | None:
        """Compare the weights before a step, and watch one of its micro-batches.

        Args:
            step: Number of the step.

        Returns:
            What is wrong with the weights; None if nothing is, or the step is not audited.
        """
        if not self._is_due(step):
            return None
        now = self._weights()
        pairs = all_gather((now, self._kept or now))
        right = _majority([now for now, _ in pairs])
        changed = [rank for rank, (now, kept) in enumerate(pairs) if now != kept]
        if changed:
            return Found(changed, _difference(*pairs[changed[0]]))
        if any(now != right for now, _ in pairs):
            others = [rank for rank, (now, _) in enumerate(pairs) if now != right]
            return Found(others, _difference(pairs[others[0]][0], right or pairs[-1][0]))
        if self._step.device.type == "cpu":
            draw = random.Random(f"{self._step.seed} {step} {self._rank}")
            self._number, self._seen = draw.randrange(self._step.micro_batches), Digests()
            self._step.watch = self._watch
        return None

    def after(self, batch: GlobalBatch) -> Found | None:
        """Compute the micro-batch that the worker before has watched, and compare.

        Returns:
            What is wrong; None if nothing is, or the step is not audited.
        """
        if self._step.watch is None:
            return None
        self._step.watch = None
        own = batch.batches[self._number]
        results = all_gather((self._seen, self._computed(self._from_worker_before(own), batch)))
        for owner, (first, _) in enumerate(results):
            checker = (owner + 1) % self._world
            second = results[checker][1]
            if first == second:
                continue
            (watched,) = [part for part in all_gather(own if owner == self._rank else None) if part]
            again = all_gather(self._computed(watched, batch))
            right = _majority(again)
            if right is None:
                return Found([owner, checker], _difference(first, second))
            computed = [(owner, first), (checker, second), *enumerate(again)]
            wrong = {rank: digests for rank, digests in computed if digests != right}
            return Found(sorted(wrong), _difference(next(iter(wrong.values())), right))
        return None

    def updated(self, step: int) -> None:
        """Keep digests of the weights after a step, if the next step is audited."""
        self._kept = self._weights() if self._is_due(step + 1) else None

    def _is_due(self, step: int) -> bool:
        return self._every is not None and step % self._every == 0

    def _weights(self) -> Digests:
        return {f"weight {name}": [_digest(p)] for name, p in self._module.named_parameters()}

    @contextmanager
    def _watch(self, number: int) -> Iterator[None]:
        """Take digests of the micro-batch of a number, if it is the one that is audited."""
        if number != self._number:
            yield
            return
        hooks = [
            parameter.register_hook(
                lambda g, name=name: self._seen.update({f"gradient of weight {name}": [_digest(g)]})
            )
            for name, parameter in self._module.named_parameters()
            if parameter.requires_grad
        ]
        try:
            with observed(self._module, _into(self._seen)):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _computed(self, micro_batch: Batch, batch: GlobalBatch) -> Digests:
        """Compute a micro-batch as the worker did that had it, and return the digests."""
        seen = Digests()
        step = self._step.on(PlainNetwork(self._module, self._step.device))
        weights = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        with undisturbed(self._module, self._step.device), observed(self._module, _into(seen)):
            loss = sum_of(step.losses(micro_batch, batch.totals))
            # As the engine and DeepSpeed scale it, in the same order.
            scaled = loss * (self._world * self._step.micro_steps) / self._step.micro_steps
            gradients = torch.autograd.grad(scaled, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                seen[f"gradient of weight {name}"] = [_digest(gradient)]
        return seen

    def _from_worker_before(self, own: Batch) -> Batch:
        """Pass a micro-batch on to the next worker, and return that of the one before."""
        if self._world == 1:
            return own
        received: list[Any] = [None]
        after, before = (self._rank + 1) % self._world, (self._rank - 1) % self._world
        if self._rank == 0:  # somebody has to begin
            dist.send_object_list([own], after)
            dist.recv_object_list(received, before)
        else:
            dist.recv_object_list(received, before)
            dist.send_object_list([own], after)
        return received[0]


def _into(seen: Digests) -> Callable[[str, str, Tensor], None]:
    """Return what adds the digests of the tensors that it sees."""
    return lambda kind, name, tensor: seen.setdefault(f"{kind} {name}", []).append(_digest(tensor))


def _digest(tensor: Tensor) -> int:
    """Return a hash of the bits of a tensor."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return xxhash.xxh3_64_intdigest(content.numpy().data)


def _majority(values: list[Digests]) -> Digests | None:
    """Return what more than half of the values are equal to; None if there is no such value."""
    return next((v for v in values if 2 * values.count(v) > len(values)), None)


def _difference(first: Mapping[str, list[int]], second: Mapping[str, list[int]]) -> str:
    """Return the name of the first tensor whose digests differ."""
    names = [*first, *second]
    return next((name for name in names if first.get(name) != second.get(name)), "")
