"""What preflight finds: the hosts, the cause, and the fix, all of them at once."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shards.errors import DataError, M2FError, Problem, UsageError, some_of

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """A thing on some hosts that would make training fail, or slow.

    Attributes:
        hosts: Names of the hosts.
        what: What is wrong, with the value and the setting or the path.
        fix: What the user can do about it.
        level: ERROR, or WARNING if training works all the same.
        is_data: Whether the data is wrong, and neither a setting nor a host.
    """

    hosts: tuple[str, ...]
    what: str
    fix: str
    level: str = ERROR
    is_data: bool = False

    @classmethod
    def of(cls, host: str, error: M2FError | Problem, fix: str = "") -> "Finding":
        """Return the finding that an error on a host is.

        Args:
            host: Name of the host.
            error: The error.
            fix: The fix if the error suggests none.
        """
        problem = error.problem if isinstance(error, M2FError) else error
        what = str(replace(problem, fix=""))
        return cls((host,), what, problem.fix or fix, is_data=isinstance(error, DataError))

    def __str__(self) -> str:
        return f"{self.level}: {some_of(self.hosts)}: {self.what}; {self.fix}"


def warning(host: str, what: str, fix: str) -> Finding:
    """Return a finding that does not prevent training."""
    return Finding((host,), what, fix, WARNING)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Return one finding for each thing that is wrong, with all its hosts; errors come first."""
    found: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        first = found.setdefault((finding.level, finding.what), finding)
        hosts = tuple(dict.fromkeys((*first.hosts, *finding.hosts)))
        found[finding.level, finding.what] = replace(first, hosts=hosts)
    return sorted(found.values(), key=lambda finding: finding.level != ERROR)


def report(findings: Sequence[Finding]) -> None:
    """Print one line per finding, and one with their number."""
    for finding in findings:
        print(finding)
    print(f"{count(findings, ERROR)} and {count(findings, WARNING)}")


def count(findings: Iterable[Finding], level: str) -> str:
    """Return the number of findings of a level, in words."""
    number = sum(finding.level == level for finding in findings)
    return f"{number} {level}{'' if number == 1 else 's'}"


def refuse(findings: Iterable[Finding]) -> None:
    """End the command if there are errors; they have been printed.

    Raises:
        DataError: All errors concern the data.
        UsageError: There are other errors.
    """
    errors = [finding for finding in findings if finding.level == ERROR]
    if not errors:
        return
    hosts = list(dict.fromkeys(host for finding in errors for host in finding.hosts))
    kind = DataError if all(finding.is_data for finding in errors) else UsageError
    raise kind(
        f"preflight found {count(errors, ERROR)} on {some_of(hosts)}",
        fix="correct what is listed above",
    )


def to_json(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """Return the findings as JSON types."""
    return [dataclasses.asdict(finding) for finding in findings]
