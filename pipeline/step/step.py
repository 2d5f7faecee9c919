"""One training step on one global batch: receive, normalize, forward, criterion, backward.

It needs an engine (a network that also does backward) and batches, and keeps no files, so that a
training run, a benchmark, and a plain loop take the same step.
"""

import copy
import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from model.criterion import (
    Criterion,
    CriterionSettings,
    Normalizers,
    class_weights,
    normalizers,
    of_groups,
)
from model.mask2former import normalize
from model.masked_decoder import Predictions
from model.targets import Draw
from pipeline.data.batch import Batch
from pipeline.data.split import BatchSplit
from pipeline.distributed import all_gather, raise_on_all_ranks, sum_on_hosts, sum_over_ranks
from pipeline.step.draws import Draws
from pipeline.step.meter import Meter


class Network(Protocol):
    """The methods of `Engine`, or of `PlainNetwork` in a single process, that a step calls."""

    def __call__(self, images: Tensor, draw: Draw, /) -> Predictions:
        """Return the predictions for normalized images `float32 [B, 3, H, W]`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch, whose loss is its part of the global loss."""
        ...


class PlainNetwork:
    """A model under plain torch in one process; bfloat16 autocast on a GPU, as `Engine` has."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device = model, device

    def __call__(self, images: Tensor, draw: Draw) -> Predictions:
        """Return the predictions for normalized images `float32 [B, 3, H, W]`."""
        gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=gpu):
            return self.model(images, draw)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch."""
        loss.backward()


class GlobalBatch(NamedTuple):
    """This rank's part of the batch of one optimizer step."""

    batches: list[Batch]  # micro-batches, on the device
    totals: Normalizers  # sums over the batches of all ranks
    damaged: list[dict[str, Any]]  # rows for quarantine.jsonl, of all ranks
    is_due: bool = False  # whether any rank said that a checkpoint is due after this step
    loss_before: float = 0.0  # of the step before, if `take_loss` has not returned it already


class TrainingStep:
    """The losses and gradients of one global batch.

    Args:
        network: The network, with backward.
        criterion: Settings of the losses.
        queries: Number of the network's queries.
        seed: Key of all random numbers.
        split: This rank's part of every global batch.
        device: Where the network is.

    Attributes:
        meter: Times the steps.
        watch: Returns a context for the passes of each micro-batch, by its number; None: without.
    """

    def __init__(
        self,
        network: Network,
        criterion: CriterionSettings,
        *,
        queries: int,
        seed: int,
        split: BatchSplit,
        device: torch.device,
    ):
        self.network, self.settings = network, criterion
        self.criterion = Criterion(criterion)
        self.queries, self.seed, self.device = queries, seed, device
        self.micro_steps = split.micro_steps
        self.micro_batches = len(split.sizes)
        self.images = split.global_batch
        self.meter = Meter(self.images)
        self.watch: Callable[[int], AbstractContextManager[None]] | None = None
        self._loss: Tensor | None = None

    def receive(self, batches: Iterator[Batch], is_due: bool = False) -> GlobalBatch:
        """Take the micro-batches of the next step, and sum over those of all ranks.

        The denominators of the losses follow from the truth alone, so that one all-reduce before
        the first forward gives them. It stays on the hosts, so no rank waits for its GPU. The same
        all-reduce tells every rank whether any rank failed to get its batches, found damaged
        samples, or is due to save a checkpoint: then all ranks stop, record it, or save, together.
        It also sums the loss of the step before, for which no GPU works any more.

        Args:
            batches: This rank's micro-batches.
            is_due: Whether a checkpoint is due after this step, by the clock of this rank.

        Raises:
            Exception: What kept any rank from getting its batches, on every rank.
        """
        received: list[Batch] = []
        error: Exception | None = None
        try:
            with self.meter.waiting():
                received = [next(batches) for _ in range(self.micro_batches)]
        except Exception as raised:  # the other ranks have to learn of it
            error = raised
        size = len(Normalizers._fields)
        shared = torch.zeros(size + 4 + self.images, dtype=torch.float64)
        sums, weights = shared[: size + 4], shared[size + 4 :]  # weights are those of each image
        sums[-4] = self.take_loss()
        for batch in received:
            categories = batch.targets.categories.cpu()
            parts = normalizers(categories, self.queries, self.settings)
            weights[self._positions(batch)] = class_weights(categories, self.queries, self.settings)
            sums[:size] += torch.stack([torch.as_tensor(part) for part in parts])
            sums[-3] += len(batch.damaged)
        sums[-2] = is_due
        sums[-1] = error is not None
        sum_on_hosts(shared)
        *totals, loss, damaged, due, failed = sums
        if failed:
            raise_on_all_ranks(error)
        rows = [row for batch in received for row in batch.damaged]
        if damaged:
            rows = [row for part in all_gather(rows) for row in part]
        on_device = [batch.to(self.device) for batch in received]
        found = Normalizers(*totals)
        if self.settings.class_normalizer == "groups":
            found = found._replace(class_weight=of_groups(weights, self.settings))
        return GlobalBatch(on_device, found, rows, bool(due), float(loss))

    def on(self, network: Network) -> "TrainingStep":
        """Return the same step on another network."""
        other = copy.copy(self)
        other.network = network
        return other

    def take_loss(self) -> float:
        """Return this rank's part of the loss of the last step, once; then 0."""
        loss, self._loss = self._loss, None
        return 0.0 if loss is None else float(loss)

    def losses(self, batch: Batch, totals: Normalizers) -> dict[str, Tensor]:
        """Return the weighted losses of one micro-batch, as its part of the global batch's.

        If the logits are not finite, all losses are NaN, so that all ranks skip the step together.
        """
        draw = Draws(self.seed, batch)
        predictions = self.network(normalize(batch.images), draw)
        if self.settings.class_normalizer == "groups":
            own = totals.class_weight[self._positions(batch)]
            totals = totals._replace(class_weight=own)
        try:
            return self.criterion(predictions, batch.targets, draw, totals)
        except FloatingPointError:
            return self.criterion.not_finite(predictions)

    def _positions(self, batch: Batch) -> list[int]:
        """Return the position of each image of a micro-batch in the global batch."""
        return [position % self.images for position in batch.positions]

    def forward_backward(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """Add the gradients of all micro-batches; return this rank's part of the losses.

        All ranks run the network equally often, because sharded parameters and gradients need all
        ranks in each pass. A rank with fewer micro-batches repeats its last one without effect.
        """
        total: dict[str, Tensor] = {}
        for number, micro_batch in enumerate(batch.batches):
            with self.watch(number) if self.watch else nullcontext():
                losses = self.losses(micro_batch, batch.totals)
                self.network.backward(sum_of(losses))
            for name, loss in losses.items():
                total[name] = total[name] + loss.detach() if name in total else loss.detach()
        for _ in range(self.micro_steps - len(batch.batches)):
            self.network.backward(0 * sum_of(self.losses(batch.batches[-1], batch.totals)))
        self._loss = sum_of(total)
        self.meter.step()
        return total


def sum_of(losses: dict[str, Tensor]) -> Tensor:
    """Return the sum of all terms."""
    return functools.reduce(operator.add, losses.values())


def global_losses(losses: dict[str, Tensor]) -> dict[str, float]:
    """Sum the losses of all ranks; `loss`, the sum of all terms, comes first."""
    values = sum_over_ranks(torch.stack(list(losses.values()))).tolist()
    return {"loss": sum(values), **dict(zip(losses, values, strict=True))}
