"""`try`: find the labels of a folder, build shards, choose settings, train, and score."""

import shlex
import time
from pathlib import Path
from typing import Any

from jobs.demo.demo import print_title
from jobs.evaluate import evaluate
from jobs.outputs import check_apart, claim
from jobs.train import train
from jobs.tryout.choices import (
    PRETRAINED,
    SCORED,
    Choice,
    Facts,
    Machine,
    choose,
    choose_steps,
    choose_weights,
)
from jobs.tryout.detect import Found, detect
from jobs.tryout.measure import step_seconds
from jobs.tryout.verdict import verdict, warnings_of
from shards.build.build import build_sets
from shards.build.options import BuildOptions
from shards.errors import UsageError
from shards.files import read_json, write_json
from shards.inspect import ShardSet, overview
from shards.parallel import processes
from shards.sources.coco_item import CocoFiles
from shards.text import say

CHOICES = "choices.json"  # of the folder, so that the same command resumes
RUN = "try"


def tryout(
    folder: Path, out: Path, weights: str | None, minutes: float, *, dry_run: bool = False
) -> dict[str, Any]:
    """Train on a folder of labeled images, and print each choice with its reason.

    Args:
        folder: The images and their labels.
        out: The folder for the shards, the run, and the report.
        weights: Pretrained weights of a backbone; None to train from random ones.
        minutes: The time that training and scoring may take.
        dry_run: Whether to stop before training.

    Returns:
        The scores; empty for a dry run.

    Raises:
        UsageError: An option is wrong, or the output folder holds something else.
        DataError: The folder has no labels that can be trained on.
    """
    start = time.perf_counter()
    starts_from = choose_weights(weights)
    print_title("1/4 find the labels, and build shards")
    found = detect(folder)
    say(f"{folder}: {found.words}")
    out = out.absolute()
    check_apart(out, [folder])
    claim(out, "try")
    sets = _build(found, out / "shards")
    print_title("2/4 choose the settings from the data and this machine")
    facts = Facts.of(overview(sets[0], processes(None)), len(ShardSet.load(sets[1]).index))
    preset = str(PRETRAINED) if weights else "tiny"
    data = [f"data.train={sets[0]}", f"data.val={sets[1]}", f"runs={out / 'runs'}", f"name={RUN}"]
    choices = _choices(
        out,
        facts,
        preset,
        data,
        starts_from,
        {"folder": str(folder.absolute()), "weights": weights, "minutes": minutes},
    )
    overrides = [*data, *_overrides(choices)]
    _print_choices(choices, facts, [preset, *overrides])
    if dry_run:
        return {}
    print_title("3/4 train")
    command = ["./launch.sh", "try", str(folder), "--out", str(out), "--minutes", f"{minutes:g}"]
    command += ["--weights", weights] if weights else []
    run = train(preset, overrides, command=shlex.join(command))
    print_title("4/4 score the validation images")
    report = out / "report.html"
    scores = evaluate(str(run), images=min(facts.val, SCORED), report=report)
    say(verdict(scores, facts))
    _print_next(folder, out, run, minutes)
    print(f"done in {time.perf_counter() - start:.0f} s; the report is {report}")
    return scores


def _choices(
    out: Path,
    facts: Facts,
    preset: str,
    data: list[str],
    starts_from: Choice,
    request: dict[str, Any],
) -> list[Choice]:
    """Return the choices of an earlier call with the same request, or make them.

    Args:
        out: The output folder.
        facts: The data.
        preset: The preset that the choices change.
        data: The settings that are not chosen.
        starts_from: The choice of the weights.
        request: What the user asked for.
    """
    choices = _made_before(out, request)
    if not choices:
        choices = [starts_from, *choose(facts, Machine.here())]
        step_s = step_seconds(preset, [*data, *_overrides(choices)])
        choices.append(choose_steps(facts, choices, step_s, request["minutes"]))
        rows = [{"settings": one.settings, "reason": one.reason} for one in choices]
        write_json(out / CHOICES, {"request": request, "choices": rows})
    return choices


def _print_choices(choices: list[Choice], facts: Facts, words: list[str]) -> None:
    """Print the choices with their reasons, and the words of the `train` command for them."""
    for choice in choices:
        for line in filter(None, ("  ".join(choice.overrides), f"    {choice.reason}")):
            say(line)
    for line in warnings_of(facts, choices):
        say(f"warning: {line}")
    print("the same as a command, to copy and change (with another name=):")
    say(f"  {shlex.join(['./launch.sh', 'train', *words])}")


def _overrides(choices: list[Choice]) -> list[str]:
    return [override for choice in choices for override in choice.overrides]


def _build(found: Found, shards: Path) -> tuple[Path, Path]:
    """Build the shard sets, print the commands that do the same, and return their folders."""
    for options in found.options(shards):
        build_sets(options)
        say(f"  {shlex.join(_build_command(options))}")
    train, val = found.sets
    return shards / train, shards / val


def _build_command(options: BuildOptions) -> list[str]:
    """Return the command line of a build."""
    root, words = options.root, ["./launch.sh", "build", options.source]
    if isinstance(root, CocoFiles):
        for name in ("images", "instances", "panoptic", "maps"):
            path = getattr(root, name)
            words += [f"--{name}", str(path)] if path else []
        words += ["--split", *options.splits]
    else:
        words += ["--root", str(root), "--splits", ",".join(options.splits)]
    words += ["--hold-out", f"{options.hold_out:g}"] if options.hold_out else []
    return [*words, "--out", str(options.out)]


def _made_before(out: Path, request: dict[str, Any]) -> list[Choice]:
    """Return the choices of an earlier call of the same command, [] if there was none.

    Raises:
        UsageError: The folder holds the run of another command.
    """
    path = out / CHOICES
    if not path.exists():
        return []
    try:
        earlier = read_json(path)
        choices = [Choice(row["settings"], row["reason"]) for row in earlier["choices"]]
        is_same = earlier["request"] == request
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError("is damaged", where=path, fix="name another folder with --out") from error
    if not is_same and (out / "runs" / RUN).exists():
        minutes = earlier["request"].get("minutes")
        raise UsageError(
            f"the folder holds a run with other options (--minutes {minutes})",
            where=f"--out {out}",
            fix="repeat its options to resume it, or name another folder",
        )
    return choices if is_same else []


def _print_next(folder: Path, out: Path, run: Path, minutes: float) -> None:
    """Print three commands that are likely to be wanted."""
    commands = [
        ["predict", str(run), str(folder), "--out", str(out / "predictions")],
        ["evaluate", str(run), "--report", str(out / "report.html")],
        ["try", str(folder), "--minutes", f"{6 * minutes:g}", "--out", f"{out}-longer"],
    ]
    print("next")
    for command in commands:
        say(f"  {shlex.join(['./launch.sh', *command])}")
