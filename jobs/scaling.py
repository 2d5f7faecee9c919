"""The settings of the workers of a run, and of what happens if some are lost."""

from dataclasses import dataclass

from model.settings import SettingError, Settings, setting


@dataclass
class ScalingSettings(Settings):
    """Workers of a run."""

    workers: int | None = setting(
        None,
        "Number of workers; null: one per GPU of this machine or of the cluster, or one if no GPU "
        "is used.",
        unit="workers",
        at_least=1,
    )
    min_workers: int | None = setting(
        None,
        "Smallest number of workers with which a run on a cluster starts, and continues after "
        "nodes are lost; once more workers fit, up to scaling.workers, it takes them after its "
        "next checkpoint; null: scaling.workers, always.",
        unit="workers",
        at_least=1,
    )
    gpu: bool | None = setting(
        None, "Give each worker a GPU; null does so if this machine or the cluster has one."
    )
    threads: int | None = setting(
        None,
        "Threads of torch in each worker; null shares the cores of a node among its workers.",
        unit="threads",
        at_least=1,
    )
    placement: str | None = setting(
        None,
        "Nodes of a cluster that are used: pack fills one after the other, and spread uses as many "
        "as it can; null: pack with GPUs, spread without.",
        choices=("pack", "spread"),
    )

    def check_range(self) -> None:
        """Check that the smallest number of workers is not the larger one."""
        most, fewest = self.workers, self.min_workers
        if fewest is not None and most is not None and fewest > most:
            raise SettingError(
                "scaling.min_workers",
                f"={fewest} is greater than scaling.workers={most}",
                f"write at most {most}, or raise scaling.workers",
            )


@dataclass
class FailureSettings(Settings):
    """What happens after a worker has died or does not answer."""

    max_restarts: int = setting(
        20, "Largest number of times that a command restarts its workers.", at_least=0
    )
    timeout_s: float = setting(
        600,
        "Longest time that a worker waits for the others, such as while a link between nodes is "
        "down; then the workers are restarted.",
        unit="seconds",
        above=0,
    )
    nodes_timeout_s: float = setting(
        600,
        "Longest time that the workers wait for other nodes after the cluster has lost some; then "
        "the command fails.",
        unit="seconds",
        above=0,
    )
