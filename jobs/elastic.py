"""Train with any number of workers of a range: those that fit, and more at a checkpoint.

Ray Train has a policy for ranges, which does not serve a run: it sees nodes up to 20 s late, waits
up to three minutes for what a killed command had reserved, and ends the workers between two
checkpoints to change their number.
"""

import time
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
)

from jobs.cluster.node_watch import free_nodes, living_nodes
from jobs.cluster.ray_cluster import fitting

POLL_S = 1.0


class FittingWorkers(ElasticScalingPolicy):
    """Starts as many workers as fit, and changes nothing as long as they run.

    Args:
        scaling: Ray's ScalingConfig, which has the range, and what a worker reserves.
    """

    def __init__(self, scaling: Any):
        super().__init__(scaling)
        self._scaling = scaling
        self._has_failed = False  # whether the workers of the last decision did not start

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start workers on the nodes that live.

        If these workers do not start, other jobs use a part of the nodes, or one has just died.
        Then count what is free.
        """
        self._maybe_send_resource_request()  # lets an autoscaler of the cluster add nodes
        nodes = free_nodes() if self._has_failed else living_nodes()
        fewest, most = self._scaling.num_workers
        cpus = self._scaling.resources_per_worker["CPU"]
        workers = min(most, fitting(nodes, cpus, self._scaling.use_gpu))
        if workers < fewest:
            time.sleep(POLL_S)
            return NoopDecision()
        self._has_failed = True  # unless they run
        return self._get_resize_decision(workers)

    def make_decision_for_running_worker_group(self, *_: Any, **__: Any) -> ScalingDecision:
        """Keep the workers."""
        self._maybe_send_resource_request()
        self._has_failed = False
        return NoopDecision()


class ElasticTrainer(TorchTrainer):
    """A trainer whose range of workers follows `FittingWorkers`."""

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["scaling_policy"] = FittingWorkers(self.scaling_config)
        return super()._initialize_and_run_controller(**arguments)


class MoreWorkers:
    """Tells rank 0 at a checkpoint whether more workers can take over.

    Args:
        now: Number of workers.
        most: Largest number of workers.
        cpus: Number of CPUs that each reserves.
        use_gpu: Whether each reserves a GPU.

    Attributes:
        count: Number of workers that take over; None until more fit.
    """

    def __init__(self, now: int, most: int, cpus: int, use_gpu: bool):
        self._now, self._most, self._cpus, self._use_gpu = now, most, cpus, use_gpu
        self.count: int | None = None

    def __call__(self) -> int | None:
        """Look at what is free on the cluster, and return `count`."""
        if self._now < self._most and (free := fitting(free_nodes(), self._cpus, self._use_gpu)):
            self.count = min(self._most, self._now + free)
        return self.count
