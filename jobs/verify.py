"""`verify`: is a shard set whole and true."""

from typing import Any

from shards.parallel import processes
from shards.text import say
from shards.verify import verify as verify_shards


def verify(out: str, sample: int | None, repair: bool, jobs: int | None) -> dict[str, Any]:
    """Check the shard sets in a folder or below a URL and print a line about each.

    Returns:
        `{"sound": true, "report": [...]}` with the printed lines.

    Raises:
        DataError: A shard set is not sound.
    """
    lines: list[str] = []

    def report(line: str) -> None:
        say(line)
        lines.append(line)

    verify_shards(out, sample=sample, repair=repair, runner=processes(jobs), report=report)
    return {"sound": True, "report": lines}
