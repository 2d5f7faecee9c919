"""How a job can fail beyond bad usage and bad data."""


class RunFailed(RuntimeError):
    """The workers of a run failed for good; the program exits 1."""
