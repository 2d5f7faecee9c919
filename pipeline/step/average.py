"""The exponential moving average of a network's weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class MovingAverage:
    """The exponential moving average of the trained parameters, float32, whole on every rank.

    After update n = 1, 2, …, every average a of a parameter p becomes d·a + (1 - d)·p, where d is
    min(decay, (1 + n) / (10 + n)). The second term forgets the random weights of the start sooner.
    Buffers and frozen parameters are not averaged.

    Args:
        module: A network whose parameters are whole on every rank.
        decay: The largest d.
    """

    def __init__(self, module: nn.Module, decay: float):
        self._decay, self._updates = decay, 0
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._averages = {n: p.detach().float().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Include the parameters after an update of the optimizer; the host does not wait."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        parameters: list[Tensor] = list(self._parameters.values())
        torch._foreach_lerp_(list(self._averages.values()), parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Exchange parameters and averages, in their memory, within the context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            trained = parameter.clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(trained)

    def state(self) -> dict[str, Tensor]:
        """Return the averages themselves, by the names that they have in a checkpoint."""
        return {f"average.{name}": average for name, average in self._averages.items()}

    def load_state(self, state: dict[str, Tensor], updates: int) -> None:
        """Load what `state` returned after a number of updates."""
        self._updates = updates
        for name, average in self._averages.items():
            average.copy_(state[f"average.{name}"])
