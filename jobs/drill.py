"""`drill`: train a run undisturbed, and its twin with random kills, and compare the two."""

import contextlib
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from jobs import config as configs
from jobs.bench import machine
from jobs.build import build
from jobs.cluster.local_run import is_running
from jobs.demo.demo import paint_set, print_title
from jobs.drill_verdict import Rows, Verdict
from jobs.faults import OPTION
from jobs.interrupts import Preempted
from jobs.outputs import claim
from jobs.preset import read_preset
from pipeline.run.fault_schedule import RandomSettings, Schedule
from pipeline.run.track import METRICS
from shards import jsonl
from shards.build.options import BuildOptions
from shards.errors import Failed, UsageError

TRAIN_IMAGES, VAL_IMAGES = 200, 20
UNDISTURBED, DISTURBED = "undisturbed", "disturbed"
KINDS = ["kill", "driver_kill", "kill", "kill"]  # one in four kills is of the command
FIRST_STEPS, STEPS_PER_KILL = 40, 4
SPARE_RESTARTS = 5
POLL_S = 0.1


def drill(
    preset: str, overrides: list[str], kills: int, seed: int, out: Path, *, dry_run: bool = False
) -> dict[str, Any]:
    """Train both runs and print the verdict.

    Args:
        preset: Name of a preset, or path of a YAML file.
        overrides: Settings of both runs as `key=value`.
        kills: Number of SIGKILLs of workers and of the command.
        seed: Key of the moments of the kills.
        out: Folder for the data and the runs.
        dry_run: Print the kills and the commands instead, and write nothing.

    Returns:
        The result of the benchmark `recovery`, with whether the verdict is good; in a dry run, the
        kills and the commands.

    Raises:
        UsageError: A setting is wrong, or the folder holds what `drill` did not write.
        Failed: A run did not finish.
    """
    for word in overrides:
        if word.startswith(("name=", "runs=")):
            fix = "leave it out; --out names the folder of both"
            raise UsageError("drill names its runs itself", where=word, fix=fix)
    out = out.absolute()
    runs, schedule = out / "runs", out / "faults.yaml"
    has_data = bool(configs.merge(read_preset(preset), overrides).data.train)
    sets = [] if has_data else [f"data.{n}={out / 'shards' / n}" for n in ("train", "val")]
    words = [preset, *_defaults(kills), *sets, *overrides, f"runs={runs}"]
    commands = {
        UNDISTURBED: ["train", *words, f"name={UNDISTURBED}"],
        DISTURBED: ["train", *words, f"name={DISTURBED}", OPTION, str(schedule)],
    }
    random = RandomSettings(seed=seed, count=kills, kinds=KINDS)
    config = configs.load(preset, commands[UNDISTURBED][2:])  # before anything is written
    if dry_run:
        return _print_plan(config, random, commands)
    claim(out, "drill")
    for name in commands:
        _remove(runs / name)
    if not has_data:
        _paint(out)
    schedule.write_text(yaml.safe_dump({"random": asdict(random)}, sort_keys=False))
    print_title(f"train undisturbed: {runs / UNDISTURBED}")
    _train(commands[UNDISTURBED], runs / UNDISTURBED, times=1)
    print_title(f"train the same with {kills} kills: {runs / DISTURBED}")
    with _observed(runs / DISTURBED) as seen:
        _train(commands[DISTURBED], runs / DISTURBED, times=1 + kills)
    verdict = Verdict(runs / UNDISTURBED, runs / DISTURBED, seen, kills)
    verdict.show()
    return {
        "benchmark": "recovery",
        **machine.facts(),
        "rows": verdict.rows(),
        "good": verdict.is_good,
    }


def _defaults(kills: int) -> list[str]:
    """Return the settings of a short run, which those of the user override."""
    steps = FIRST_STEPS + STEPS_PER_KILL * kills
    return [
        f"trainer.steps={steps}",
        "trainer.log_every=1",
        "checkpoint.every_steps=5",
        f"evaluation.every_steps={steps}",
        "evaluation.images=8",
        "tracking.wandb.mode=disabled",
        f"failure.max_restarts={kills + SPARE_RESTARTS}",
    ]


def _print_plan(
    config: configs.Config, random: RandomSettings, commands: dict[str, list[str]]
) -> dict[str, Any]:
    faults = [*Schedule.of(random.drawn(config.trainer.steps, config.scaling.workers or 1)).faults]
    shown = [shlex.join(["./launch.sh", *command]) for command in commands.values()]
    print(*faults, *shown, sep="\n")
    return {"faults": faults, "commands": shown}


def _remove(run: Path) -> None:
    """Remove a run of an earlier drill.

    Raises:
        UsageError: It is being trained.
    """
    if is_running(run):
        fix = "wait for it, or name another --out"
        raise UsageError("another drill trains in this folder", where=run, fix=fix)
    shutil.rmtree(run, ignore_errors=True)


def _paint(out: Path) -> None:
    """Make the shard sets of painted shapes, unless they exist."""
    print_title("paint a data set, and build its shards")
    paint_set(out / "raw", TRAIN_IMAGES, VAL_IMAGES)
    build(BuildOptions("coco", out / "raw", out / "shards"))


def _train(command: list[str], run: Path, times: int) -> None:
    """Train a run, and repeat the command whenever it is killed or asked to stop.

    The output of the command goes to stderr.

    Raises:
        Failed: The run ended otherwise, or the command was needed more often than `times`.
    """
    code = 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-P", "-m", "jobs", *command], stdout=2)
        try:
            code = process.wait()
        finally:
            process.terminate()
            process.wait()
        if code == 0:
            return
        if code not in (-signal.SIGKILL, Preempted.exit_code):
            break
        while is_running(run):  # its workers are ending
            time.sleep(POLL_S)
        print(f"the command has ended ({code}); it is repeated", file=sys.stderr)
    raise Failed(f"the run did not finish (exit code {code})", where=run, fix="see the lines above")


@contextlib.contextmanager
def _observed(run: Path) -> Iterator[Rows]:
    """Yield the rows of metrics of a run by attempt and step; a restart removes them from the file.

    They grow while the context lasts.
    """
    seen: Rows = {}
    end = threading.Event()

    def read() -> None:
        for row in jsonl.rows(run / METRICS, {"step": int, "attempt": int}):
            seen[row["attempt"], row["step"]] = row

    def follow() -> None:
        while not end.wait(POLL_S):
            read()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()
        read()
