"""The division of global batches over ranks, micro-batches and loader processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product

from pipeline.settings import RunSettings
from shards.errors import UsageError


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is divided over ranks and micro-batches, and the rank in question.

    The shares of two ranks differ by at most one sample, and so do the micro-batches of a rank.

    Attributes:
        global_batch: Samples per optimizer step, over all ranks.
        micro_batch: Largest number of samples per forward pass of one rank.
        world_size: Number of ranks.
        rank: This rank, from 0.

    Raises:
        UsageError: There are more ranks than samples in a batch.
    """

    global_batch: int
    micro_batch: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.world_size > self.global_batch:
            raise UsageError(
                f"{self.global_batch} images are too few for scaling.workers={self.world_size}, "
                "of which each needs one",
                where="batch.size",
                fix=f"write scaling.workers={self.global_batch} or less, or raise batch.size",
            )

    @property
    def is_even(self) -> bool:
        """Whether all micro-batches of all ranks have `micro_batch` samples."""
        return self.global_batch % (self.micro_batch * self.world_size) == 0

    @property
    def micro_steps(self) -> int:
        """Number of forward passes of every rank per optimizer step."""
        largest_share = -(-self.global_batch // self.world_size)
        return -(-largest_share // self.micro_batch)

    @property
    def sizes(self) -> list[int]:
        """Number of samples of each micro-batch of this rank.

        There is one micro-batch per micro-step, except that the last one is missing if
        `micro_batch` is 1 and other ranks have one sample more.
        """
        sizes = (self._size(self.rank, step) for step in range(self.micro_steps))
        return [size for size in sizes if size]

    def positions(self) -> list[range]:
        """Return the positions of this rank's micro-batches from the start of the global batch."""
        parts, first = [], 0
        for step, rank in product(range(self.micro_steps), range(self.world_size)):
            size = self._size(rank, step)
            if rank == self.rank and size:
                parts.append(range(first, first + size))
            first += size
        return parts

    def _size(self, rank: int, micro_step: int) -> int:
        share = _even_part(self.global_batch, self.world_size, rank)
        return _even_part(share, self.micro_steps, micro_step)


def split_of(settings: RunSettings, world_size: int, rank: int = 0) -> BatchSplit:
    """Return the division of a run's global batches.

    Raises:
        UsageError: There are more ranks than samples in a batch, or micro-batches differ in size
            although the losses or the norms of the run depend on it.
    """
    size, micro = settings.batch.size, settings.batch.micro
    split = BatchSplit(size, micro, world_size, rank)
    if settings.depends_on_micro_batches and not split.is_even:
        multiple = micro * world_size
        less = size // multiple * multiple
        nearest = f"{less} or {less + multiple}" if less else f"{multiple}"
        raise UsageError(
            f"{size} is not a multiple of batch.micro={micro} x scaling.workers={world_size}; "
            "with model.norm=batch or sync_batch, or criterion.class_normalizer=local, all "
            "micro-batches must have the same size",
            where="batch.size",
            fix=f"write batch.size={nearest}, or change the other two",
        )
    return split


def _even_part(total: int, parts: int, part: int) -> int:
    """Return the size of a part of `total`; the first parts are larger by one if necessary."""
    return total // parts + (part < total % parts)


def micro_batch_positions(position: int, split: BatchSplit) -> Iterator[range]:
    """Yield the positions of this rank's micro-batches without end.

    With global batch B, step t covers the positions [t·B, (t+1)·B). First come those of the first
    micro-step of rank 0, rank 1, and so on, then those of the second micro-step. If all
    micro-batches have m positions, micro-step a of rank r of W takes those from t·B + (a·W + r)·m
    on.

    Args:
        position: The position at which the first step begins.
        split: The division of the global batch.
    """
    parts = split.positions()
    while True:
        for part in parts:
            yield range(position + part.start, position + part.stop)
        position += split.global_batch


def batches_of_process(batches: Iterator[range], process: int, count: int) -> Iterator[range]:
    """Yield the batches that one of `count` loader processes prepares.

    Process j prepares batches j, j + count, and so on, because torch's DataLoader takes one batch
    from each process in turn.
    """
    return islice(batches, process, None, count)
