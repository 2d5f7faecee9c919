"""The step of a job of SLURM that runs Ray on all its nodes, as the job's first node sees it."""

import collections
import contextlib
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

from shards.errors import Failed

POLL_S = 0.2
END_S = 15  # for a process to end after SIGTERM
# A step has all memory and all CPUs of the job on its nodes, and SLURM binds its tasks to none.
OF_STEPS = ("--mem=0", "--cpu-bind=none")
ENDED = "ended"  # what a node says last if its Ray ended
TAIL = 4  # lines of a node that an error shows
FIRST_PORT, PORTS = 20000, 10000  # below those that Linux gives to outgoing connections


class Nodes:
    """The step that runs Ray on every node of the job.

    Args:
        job: The id of the job.
        names: The names of the nodes.
        python: Options of srun that enter the container, and Python.
        log: The file that takes what the nodes print.

    Attributes:
        address: HOST:PORT of the head once all nodes have joined; None before.
    """

    def __init__(self, job: str, names: list[str], python: list[str], log: Path):
        self.names, self.address, self._lost = names, None, ""
        self._joined: set[str] = set()
        self._last = {name: collections.deque[str](maxlen=TAIL) for name in names}
        count = str(len(names))
        self._step = subprocess.Popen([
            *("srun", "--overlap", "--nodes", count, "--ntasks", count, "--ntasks-per-node=1"),
            *("--label", "--unbuffered", "--kill-on-bad-exit=1", *OF_STEPS, *python),
            *("-P", "-m", "jobs.cluster.slurm_node", f"--port={_free_port(int(job))}"),
        ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True)  # fmt: skip
        assert self._step.stdout
        self._thread = threading.Thread(target=self._read, args=(self._step.stdout, log))
        self._thread.daemon = True
        self._thread.start()

    def _read(self, lines: IO[str], path: Path) -> None:
        """Keep what the nodes print in a file, and understand what the head reports."""
        with path.open("a") as log:
            for line in lines:
                log.write(line)
                log.flush()
                index, _, text = line.rstrip("\n").partition(": ")
                if not index.strip().isdigit():  # of srun itself
                    continue
                self._last[self.names[int(index)]].append(text)
                word, _, value = text.partition(" ")
                if word == "joined":
                    self._joined.add(value)
                elif word == "ready":
                    self.address = value
                elif word == "lost":
                    self._lost = f"the node {value} was lost"
                elif word == ENDED and not self._lost:
                    name = self.names[int(index)]
                    self._lost = f"Ray ended on {name} ({self.tails([name])})"

    def lost(self) -> str:
        """Return why Ray does not run on all nodes any longer; "" if it does."""
        if self._lost or self._step.poll() is None:
            return self._lost
        self._thread.join(END_S)
        return self._lost or f"the step of Ray ended ({self.tails(self.names)})"

    def lost_within(self, seconds: float) -> str:
        """Return what `lost` does, after waiting for a node that made the command fail."""
        deadline = time.monotonic() + seconds
        while not (lost := self.lost()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return lost

    def missing(self) -> str:
        """Return which nodes have not joined, and what they printed last."""
        names = [name for name in self.names if name not in self._joined]
        return f"{', '.join(names)} did not join ({self.tails(names)})"

    def tails(self, names: list[str]) -> str:
        """Return the last lines that nodes have printed."""
        return "; ".join(f"{name}: {' | '.join(self._last[name]) or 'nothing'}" for name in names)

    def end(self) -> None:
        """End Ray on all nodes, which do so themselves at the end of their input."""
        assert self._step.stdin
        self._step.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._step.wait(END_S)
        end(self._step)
        self._thread.join(END_S)


def end(process: subprocess.Popen) -> None:
    """Ask a process to end, and kill it if it does not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
            return


def _free_port(number: int) -> int:
    """Return a port of this node, by the id of the job, that is free like the one after it."""
    for offset in range(0, PORTS, 2):
        port = FIRST_PORT + (number * 2 + offset) % PORTS
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            socket.create_server(("", port + 1)).close()
            return port
    raise Failed(f"no ports from {FIRST_PORT} to {FIRST_PORT + PORTS} are free", where="SLURM")
