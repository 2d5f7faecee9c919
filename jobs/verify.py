"""`verify`: is a shard set whole and true."""

from shards.parallel import processes
from shards.verify import verify as verify_shards


def verify(out: str, sample: int | None, repair: bool, jobs: int | None) -> None:
    """Check the sets in `out` and say so; DataError for what is not sound."""
    verify_shards(out, sample=sample, repair=repair, runner=processes(jobs))
