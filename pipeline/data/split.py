"""The division of global batches over ranks, micro-batches and loader processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from shards.errors import UsageError


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is divided over ranks and micro-batches, and the rank in question.

    Attributes:
        global_batch: Samples per optimizer step, over all ranks.
        micro_batch: Samples per forward pass of one rank.
        world_size: Number of ranks.
        rank: This rank, from 0.

    Raises:
        UsageError: The ranks cannot fill the global batch with whole micro-batches.
    """

    global_batch: int
    micro_batch: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        multiple = self.micro_batch * self.world_size
        if self.global_batch % multiple:
            less = self.global_batch // multiple * multiple
            nearest = f"{less} or {less + multiple}" if less else f"{multiple}"
            raise UsageError(
                f"{self.global_batch} is not a multiple of batch.micro={self.micro_batch} x "
                f"scaling.workers={self.world_size}",
                where="batch.size",
                fix=f"write batch.size={nearest}, or change the other two",
            )

    @property
    def micro_steps(self) -> int:
        """Number of micro-batches of each rank per optimizer step."""
        return self.global_batch // (self.micro_batch * self.world_size)


def micro_batch_positions(position: int, split: BatchSplit) -> Iterator[range]:
    """Yield the positions of this rank's micro-batches without end.

    With global batch B, micro-batch m and W ranks, step t covers the positions [t·B, (t+1)·B).
    Micro-step a of rank r takes m positions from t·B + (a·W + r)·m on.

    Args:
        position: The position at which the first step begins.
        split: The division of the global batch.
    """
    while True:
        for micro_step in range(split.micro_steps):
            slot = micro_step * split.world_size + split.rank
            first = position + slot * split.micro_batch
            yield range(first, first + split.micro_batch)
        position += split.global_batch


def batches_of_process(batches: Iterator[range], process: int, count: int) -> Iterator[range]:
    """Yield the batches that one of `count` loader processes prepares.

    Process j prepares batches j, j + count, and so on, because torch's DataLoader takes one batch
    from each process in turn.
    """
    return islice(batches, process, None, count)
