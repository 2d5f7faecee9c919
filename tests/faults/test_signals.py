"""Ctrl-C, SIGTERM, and the end of the terminal: a checkpoint, one line, and nothing left."""

import contextlib
import os
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.run.eventlog import EVENTS
from pipeline.run.track import METRICS
from shards.jsonl import rows
from tests.jobs import small
from tests.pipeline.data.test_stages import HERE

pytestmark = pytest.mark.slow

LISTENING = "0A"
LOOPBACK = ("0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF0000" + "0100007F")
# None of these changes what is learned.
RESUMED_WITH = [
    *("checkpoint.every_steps=5000", "evaluation.every_steps=77", "trainer.log_every=2"),
    *("batch.micro=4", "model.checkpoint_activations=true", "data.loader_workers=1"),
]


def tree(root: int) -> list[Path]:
    """Return /proc/PID of a process and of all below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return [Path(f"/proc/{process}") for process in found]


def listening(processes: list[Path]) -> dict[str, set[str]]:
    """Return the addresses where processes listen for TCP, in hex, by name of the process."""
    addresses = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTENING:
                addresses[f"socket:[{rest[5]}]"] = local.rpartition(":")[0]
    found: dict[str, set[str]] = {}
    for process in processes:
        with contextlib.suppress(OSError):
            name = (process / "comm").read_text().strip()
            for link in (process / "fd").iterdir():
                if (target := str(link.readlink())) in addresses:
                    found.setdefault(name, set()).add(addresses[target])
    return found


def environment(process: Path) -> dict[str, str]:
    entries = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def shared_memory(processes: list[Path]) -> set[str]:
    """Return the files of /dev/shm that processes have mapped."""
    found = set()
    for process in processes:
        with contextlib.suppress(OSError):
            words = (process / "maps").read_text().split()
            found |= {word for word in words if word.startswith("/dev/shm/")}
    return found


@dataclass
class Signaled:
    """A command that was sent a signal, and what was left of it."""

    outcome: small.Outcome
    attempts: list[dict]
    steps: set[int]
    left: list[str] = field(default_factory=list)


class Commands:
    """Starts the small run again and again, with no end of its own, and ends it by signals."""

    def __init__(self, folder: Path, temporary: Path, photographs: Path):
        self.folder, self.temporary, self.photographs = folder, temporary, photographs
        self.run = folder / "runs" / small.NAME
        self.processes: list[Path] = []

    def start(self, *changes: str, **variables: str):
        every = ["checkpoint.every_steps=3000", "trainer.steps=100000", "data.loader_workers=1"]
        words = small.words(self.photographs, *every, *changes)
        variables |= {"TMPDIR": str(self.temporary)}
        return small.start(self.folder, *words, start_new_session=True, **variables)

    def wait(self, process, condition) -> None:
        until = time.monotonic() + small.TIMEOUT_S
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)

    def train(self, process, steps: int = 3) -> None:
        """Wait until the workers of a command have logged steps."""
        starts = len(self.attempts())
        self.wait(process, lambda: len(self.attempts()) > starts)
        first = self.attempts()[-1]["time"]

        def has_trained() -> bool:
            return sum(row["time"] > first for row in rows(self.run / METRICS)) >= steps

        self.wait(process, has_trained)

    def attempts(self) -> list[dict]:
        return [row for row in rows(self.run / EVENTS) if row["event"] == "start"]

    def end(self, process, number: int, group: bool = True) -> Signaled:
        """Send a signal, wait for the end, and look for what is left."""
        processes = tree(process.pid)
        memory = shared_memory(processes)
        (os.killpg if group else os.kill)(process.pid, number)
        outcome = small.finish(process)
        steps = {int(path.parent.name[5:14]) for path in self.run.glob("checkpoints/*/COMMITTED")}
        left = [path.name for path in self.temporary.iterdir()]
        left += [name for name in memory if Path(name).exists()]
        for path in processes:
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_text()
                if command:  # a process that is ending has none
                    left.append(command)
        return Signaled(outcome, self.attempts(), steps, left)


@pytest.fixture(scope="module")
def commands(tmp_path_factory, photographs):
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        yield Commands(tmp_path_factory.mktemp("signals"), Path(temporary), photographs)


def check_line(command: Signaled, run: Path, name: str, step: int) -> None:
    """Check that one line on stderr names the signal, the checkpoint, and the command to resume."""
    line = small.complaint(command.outcome)
    start = f"error: {run}: stopped by {name}; the newest checkpoint is of step {step}; "
    assert line.startswith(f"{start}to resume: ./launch.sh train tiny data.train=")
    assert "Traceback" not in command.outcome.out
    assert command.left == []


def test_ctrl_c_writes_a_checkpoint_and_nothing_listens_beyond_this_machine(commands):
    process = commands.start()
    commands.train(process)
    processes = tree(process.pid)
    found = listening(processes)
    command = commands.end(process, signal.SIGINT)

    assert {"gcs_server", "raylet"} <= found.keys()
    assert any(name.startswith("ray::RayTrain") for name in found)
    assert set.union(*found.values()) <= set(LOOPBACK), found

    assert command.outcome.code == 130
    assert len(command.steps) == 2
    check_line(command, commands.run, "SIGINT", max(command.steps))
    last = rows(commands.run / EVENTS)[-1]
    assert (last["event"], last["step"]) == ("stopped", max(command.steps))
    assert rows(commands.run / METRICS)[-1]["step"] == max(command.steps)
    assert "a checkpoint is written after this step" in command.outcome.out


def test_a_scheduler_that_signals_the_whole_group_gets_a_checkpoint_and_75(commands):
    """It resumes the run of the test above with settings that do not change what is learned.

    The command has no home folder.
    """
    process = commands.start(*RESUMED_WITH, HOME="/nonexistent")
    commands.train(process)
    raylet = next(p for p in tree(process.pid) if (p / "comm").read_text() == "raylet\n")
    variables = environment(raylet)
    command = commands.end(process, signal.SIGTERM)

    assert variables["RAY_AUTH_MODE"] == "token"
    assert len(variables["RAY_AUTH_TOKEN"]) == 64
    assert command.outcome.code == 75
    assert command.attempts[-1]["step"] > 0
    assert max(command.steps) > command.attempts[-1]["step"]
    check_line(command, commands.run, "SIGTERM", max(command.steps))


def test_the_end_of_a_terminal_while_ray_starts_leaves_nothing(commands):
    steps = {int(path.parent.name[5:14]) for path in commands.run.glob("checkpoints/*/COMMITTED")}
    process = commands.start()
    commands.wait(process, lambda: any(commands.temporary.iterdir()))
    command = commands.end(process, signal.SIGHUP)
    assert command.outcome.code == 75
    assert command.steps == steps
    check_line(command, commands.run, "SIGHUP", max(steps))


def test_a_second_ctrl_c_stops_at_once(commands):
    """Here no step ends, because a stage hangs, so that the first Ctrl-C is not enough."""
    process = commands.start(f"data.stages=[{HERE}:hang]", "name=hanging")
    run = commands.folder / "runs/hanging"
    commands.wait(process, lambda: any(run.glob("checkpoints/*/COMMITTED")))
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(2)
    command = commands.end(process, signal.SIGINT)
    assert command.outcome.code == 130
    line = small.complaint(command.outcome)
    assert line.startswith(f"error: {run}: stopped by SIGINT; the newest checkpoint is of step 0; ")
    assert command.left == []
