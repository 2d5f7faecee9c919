"""How a job can fail beyond bad usage and bad data."""

from shards.errors import Failed


class RunFailed(Failed):
    """The workers of a run failed for good; the program exits 1."""
