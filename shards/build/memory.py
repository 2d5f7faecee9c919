"""Memory of the processes that make shards."""

import numpy as np


def keep_freed_memory() -> None:
    """Let this process keep up to 62 MiB of freed memory for its next allocations.

    Building allocates and frees several images and maps per sample. By default glibc returns each
    of them to the system and fetches new pages for the next one, which takes a quarter of the time
    per sample.
    """
    # glibc raises its thresholds when a large block is freed: a block of up to 32 MiB becomes the
    # new limit for mmap, and twice its size the amount of free memory that the process keeps.
    np.empty(31 << 20, np.uint8)
