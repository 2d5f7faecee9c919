"""The option `--on`: where a command runs."""

import os
import re
from dataclasses import dataclass
from typing import Literal, Self

from shards.errors import UsageError

Kind = Literal["local", "ray", "job", "slurm", "kuberay"]
KNOWN = (
    "local, auto, HOST:PORT (a Ray cluster), http://HOST:8265 (its job server), slurm, or kuberay"
)
_RAY = re.compile(r"(ray://)?(\[[\w.:]+\]|[\w.-]+):\d{1,5}")
_JOB = re.compile(r"https?://(\[[\w.:]+\]|[\w.-]+)(:\d{1,5})?(/[\w./-]*)?")


@dataclass(frozen=True)
class Target:
    """Where a command runs.

    Attributes:
        kind: "local" is this machine; "ray", a Ray cluster that the command joins; "job", the job
            server of a Ray cluster; "slurm" and "kuberay" are schedulers.
        address: The address of the cluster, or the URL of its job server.
    """

    kind: Kind = "local"
    address: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the target that `--on TEXT` names.

        "auto" is the cluster of RAY_ADDRESS if that is set, and otherwise this machine.

        Raises:
            UsageError: It names none.
        """
        where = f"--on {text}"
        if text == "auto":
            address = os.environ.get("RAY_ADDRESS", "")
            text, where = address or "local", f"RAY_ADDRESS={address}"
        if text in ("local", "slurm", "kuberay"):
            return cls(text)  # pyright: ignore[reportArgumentType] one of its literals
        if _JOB.fullmatch(text):
            return cls("job", text.rstrip("/"))
        if _RAY.fullmatch(text):
            return cls("ray", text)
        raise UsageError("is not known", where=where, fix=f"give {KNOWN}")

    @property
    def is_submitted(self) -> bool:
        """Whether the command runs in a job that a server or a scheduler starts."""
        return self.kind in ("job", "slurm", "kuberay")

    @property
    def cluster(self) -> str | None:
        """The address of the Ray cluster that the command joins; None for this machine."""
        return self.address if self.kind == "ray" else None

    def __str__(self) -> str:
        return self.address or self.kind


HERE = Target()
