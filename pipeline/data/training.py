"""The data of a training run: its shard sets, and the batches of one rank."""

from collections.abc import Iterator

from pipeline.data.batch import BYTES_PER_PIXEL, Batch
from pipeline.data.loader import loader
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, order_of, train_sets, train_stream


class TrainingData:
    """The shard sets of a run.

    Args:
        settings: The sets and how they are read.
        task: "panoptic", "instance", or "semantic".
        seed: Key of the sample order and of all augmentation.

    Attributes:
        stores: The training sets.
        val: The set that the network is scored on.
        order: The order of the samples.
        taxonomy: The classes.

    Raises:
        UsageError: A path is not a shard set, or the label spaces of the training sets differ.
        DataError: A manifest or an index is damaged.
    """

    def __init__(self, settings: DataSettings, task: str, seed: int):
        self.settings, self.task, self.seed = settings, task, seed
        self.stores = train_sets(settings)
        self.val = Store(settings.val, cache=settings.cache)
        self.order = order_of(self.stores, settings, seed)
        self.taxonomy = self.stores[0].manifest.taxonomy

    def batches(self, position: int, split: BatchSplit, *, pin_memory: bool) -> Iterator[Batch]:
        """Return the micro-batches of one rank from a position on, without end.

        Args:
            position: Index of the first sample in the order of the whole run.
            split: This rank's part of every global batch.
            pin_memory: Put batches into page-locked memory, from which copies to a GPU are faster.
        """
        height, width = self.settings.crop_size
        return loader(
            train_stream(self.settings, self.stores, self.task, self.seed, position, split),
            self.settings.loader_workers,
            pin=pin_memory,
            batch_bytes=split.micro_batch * height * width * BYTES_PER_PIXEL,
            timeout_s=self.settings.stall_timeout_s,
        )
