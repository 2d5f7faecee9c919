"""The side of preflight that runs on a host; on a cluster it is an actor of Ray.

Preflight sends this module to the nodes as it is here, because the code on a node may be another.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from jobs.cluster import marker, probe, reach
from jobs.cluster.ray_cluster import Variables
from shards.errors import Failed


class Prober:
    """Looks at its host, and asks a process with torch, which ends with this one.

    Args:
        variables: Environment variables of the command.
    """

    def __init__(self, variables: Variables) -> None:
        variables.set()
        self._process: subprocess.Popen | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 as long as this object

    def look(self, plan: probe.Plan, name: str) -> probe.Answers:
        """Run the probes; see `probe.look`."""
        return probe.look(plan, name)

    def now(self) -> float:
        """Return the time of this host's clock."""
        return time.time()

    def serve(self, address: str) -> int:
        """Accept connections; see `reach.serve`."""
        return reach.serve(address)

    def reach(self, servers: dict[str, tuple[str, int]]) -> dict[str, str]:
        """Connect to other hosts; see `reach.reach`."""
        return reach.reach(servers)

    def free_port(self, address: str) -> int:
        """Return a port for a meeting; see `reach.free_port`."""
        return reach.free_port(address)

    def examine(self, stages: Sequence[str], limit_s: float) -> tuple[Any, Any]:
        """Return what torch says about this host's GPUs, and the problems of the stages.

        Args:
            stages: Names of the stages.
            limit_s: Time limit of both.
        """
        deadline = time.monotonic() + limit_s
        devices = self.ask("devices", {}, limit_s)
        if not stages or isinstance(devices, Failed):
            return devices, ()
        left = max(1, deadline - time.monotonic())
        return devices, self.ask("stages", {"names": list(stages)}, left)

    def ask(self, request: str, arguments: dict[str, Any], limit_s: float) -> Any:
        """Return what the process with torch answers; see `jobs/cluster/helper.py`.

        An error is returned, because what an actor raises arrives with a traceback in its text.

        Args:
            request: Name of the function.
            arguments: Its arguments.
            limit_s: Time after which the process is killed.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps([request, arguments]).encode() + b"\n")
            process.stdin.flush()
            is_there, _, _ = select.select([process.stdout], [], [], limit_s)
            line = process.stdout.readline() if is_there else None
        except BrokenPipeError:
            line = b""
        if line and "facts" in (answer := json.loads(line)):
            return answer["facts"]
        if line:
            self._kill()  # a group that failed cannot meet again
            return Failed(answer["error"])
        if line is None:
            self._kill()
            return Failed(f"no answer in {limit_s:g} s")
        return Failed(self._cause(process))

    def end(self, plan: probe.Plan, name: str) -> None:
        """End the process with torch, and remove what this host has written to the runs."""
        self._kill()
        if plan.marker:
            marker.forget(plan.runs, plan.marker, name)

    def _kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen:
        hidden = ("CUDA_VISIBLE_DEVICES",)  # Ray hides the GPUs from those who reserve none
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs.cluster.helper"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def _cause(self, process: subprocess.Popen) -> str:
        """Return why the process has ended, with the last line that it printed."""
        code = process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the process died ({cause})" + (f": {lines[-1]}" if lines else "")
