"""Every state of a run folder has a defined outcome: the run is resumed, or one line says why not.

A crash, a full disk, a loss of power, and a user's own files can leave these states. Whatever the
outcome, nothing changes that the run did not write.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from jobs import config as configs
from jobs.follow import Follower
from jobs.resume import open_run
from pipeline.run import checkpoint, commit, eventlog, events
from pipeline.run.checkpoint import COMMITTED, MANIFEST, STATE, TRAINER_STATE, Progress
from pipeline.run.folder import (
    CHECKPOINTS,
    check_files,
    choose_checkpoint,
    scores_path,
    summarize,
)
from pipeline.run.info import RunInfo
from pipeline.run.journal import Journal
from pipeline.run.quarantine import QUARANTINE
from pipeline.run.track import METRICS
from pipeline.settings import CheckpointSettings, ScheduleSettings, WandbSettings
from shards.errors import UsageError
from shards.files import write_json
from shards.format.taxonomy import Taxonomy
from shards.jsonl import append
from shards.locks import file_lock
from tests.jobs import small
from tests.pipeline.runs import TAXONOMY, trainer_state

NAME, KEEP, STEPS = "run", 2, 6
FIRST, LAST = (f"{CHECKPOINTS}/{checkpoint.name_of(step, 1)}" for step in (2, 4))
RECORDS = (eventlog.EVENTS, METRICS, QUARANTINE)
Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def few_packages(monkeypatch):
    """Listing the installed packages takes most of the time of these tests."""
    monkeypatch.setattr("jobs.resume.distributions", list)


@dataclass
class Manifest:
    """What a run compares of the manifest of a shard set."""

    fingerprint: str
    taxonomy: Taxonomy = TAXONOMY


@dataclass
class Set:
    """Stands for a shard set."""

    location: str
    manifest: Manifest


@pytest.fixture(scope="module")
def opened():
    """Return the config of the run and its sets."""
    _, preset, *overrides = small.words(Path("sets"), f"name={NAME}", f"trainer.steps={STEPS}")
    train, val = (Set(f"sets/{name}", Manifest(f"of {name}")) for name in ("train", "val"))
    return configs.load(preset, overrides), ([train], val)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((3,), float(step))}


def save(run: Path, step: int, attempt: int = 1) -> Path:
    folder = run / CHECKPOINTS / checkpoint.name_of(step, attempt)
    checkpoint.save(folder, tensors(step), trainer_state(step))
    return folder


@pytest.fixture
def run(tmp_path, opened) -> Path:
    """Write a run that was killed after step 5, with checkpoints at steps 2 and 4."""
    config, (train, val) = opened
    run = tmp_path / "runs" / NAME
    run.mkdir(parents=True)
    configs.save(config, run / "config.yaml")
    fingerprints = {"train": [train[0].manifest.fingerprint], "val": val.manifest.fingerprint}
    write_json(run / "environment.json", {"data": fingerprints, "packages": {}})
    eventlog.append(run, events.Start(world_size=1, step=0, run_id="run-1234abcd"))
    for step in (2, 4):
        save(run, step)
        write_json(scores_path(run, step), {"step": step, "PQ": 10.0 * step})
    for step in range(1, 6):
        append(run / METRICS, {
            "step": step, "position": 8 * step, "interval_s": 1.0, "loss": 2.0, "images_per_s": 4.0,
        })  # fmt: skip
    append(run / QUARANTINE, {"step": 1, "position": 3, "set": "train", "key": "a"})
    for path in (run / "summary.json", run / "pictures" / "a.png", run / ".lock"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    return run


@pytest.fixture
def elsewhere(run, tmp_path) -> Path:
    """Write another run of the user beside the run."""
    return Path(shutil.copytree(run, tmp_path / "runs" / "other"))


def contents(root: Path) -> dict[str, object]:
    """Return what is at every path below a folder, without following links."""

    def content(path: Path) -> object:
        if path.is_symlink():
            return path.readlink()
        return path.read_bytes() if path.is_file() else path.stat().st_mode

    return {path.relative_to(root).as_posix(): content(path) for path in root.rglob("*")}


@dataclass
class StubEngine:
    """Stands for DeepSpeed: it has a state."""

    step: int

    def layout(self) -> dict[str, torch.Tensor]:
        return tensors(self.step)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(tensors(self.step).items())


def resume(run: Path, opened) -> int:
    """Resume a run without Ray and without a network, up to its last step.

    Returns:
        The step that it was resumed from; STEPS if it was finished.
    """
    config, stores = opened
    with file_lock(run / ".lock", wait=False):
        if not open_run(run, config, stores):
            return STEPS
        info = RunInfo(
            name=config.name, task="panoptic", launch="17.000", order={}, data={},
            taxonomy=TAXONOMY, zero_stage=1, max_damaged=10,
            checkpoint=CheckpointSettings(keep=KEEP), wandb=WandbSettings(mode="disabled"),
            settings=config,
        )  # fmt: skip
        with Follower(run, STEPS):
            journal = Journal(run, info, torch.device("cpu"))
            progress = journal._resumed.progress if journal._resumed else Progress()
            end = Progress(STEPS, 8 * STEPS, STEPS)
            if progress.step < STEPS:
                journal.metrics(end, {"loss": 1.0, "interval_s": 1.0, "images_per_s": 8.0})
                journal.save(end, StubEngine(STEPS), required=True)  # pyright: ignore[reportArgumentType]
            if not journal.is_scored(STEPS):
                journal.scored(STEPS, {"PQ": 90.0})
            journal.finish(end)
    return progress.step


def write(path: str, content: str | bytes) -> Change:
    def change(run: Path) -> None:
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def add(path: str, content: bytes) -> Change:
    def change(run: Path) -> None:
        with (run / path).open("ab") as file:
            file.write(content)

    return change


def remove(*paths: str) -> Change:
    def change(run: Path) -> None:
        for path in paths:
            shutil.rmtree(run / path) if (run / path).is_dir() else (run / path).unlink()

    return change


def cut(path: str) -> Change:
    return lambda run: (run / path).write_bytes((run / path).read_bytes()[:-9])


def replace(path: str, make: Change) -> Change:
    """Replace what is at a path by what `make` makes of it."""

    def change(run: Path) -> None:
        if (run / path).is_dir():
            shutil.rmtree(run / path)
        else:
            (run / path).unlink(missing_ok=True)
        make(run / path)

    return change


def link(path: str, target: str) -> Change:
    return replace(path, lambda link: link.symlink_to(target))


def all_of(*changes: Change) -> Change:
    def change(run: Path) -> None:
        for one in changes:
            one(run)

    return change


def finished(run: Path) -> None:
    save(run, STEPS)
    eventlog.append(run, events.Finish(step=STEPS, position=8 * STEPS))


def renamed(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(f"name: {NAME}\n", "name: before\n"))


class State(NamedTuple):
    """A state of the run folder.

    Attributes:
        change: Makes the state.
        outcome: The step that the run is resumed from, or a pattern of the error.
        theirs: Paths of the user, which have to stay as they are.
    """

    change: Change
    outcome: int | str
    theirs: tuple[str, ...] = ()


def theirs(change: Change, *paths: str) -> State:
    """Return a state in which the run resumes from its last checkpoint and paths stay."""
    return State(change, 4, paths)


BAK, FILE = f"{LAST}.bak", f"{CHECKPOINTS}/step-000000009-a01"
NEXT = f"{CHECKPOINTS}/{checkpoint.name_of(STEPS, 2)}"
OTHER = f"../../other/{LAST}"
SCORES = "evaluations/step-000000004.json"
STATES = {
    "as a kill leaves it": State(lambda run: None, 4),
    # what a killed writer leaves
    **{
        f"leftover {name}": theirs(write(name, "{"), name)
        for name in (
            "config.yaml.tmp-77",
            "environment.json.tmp-77",
            "summary.json.tmp-77",
            "metrics.jsonl.tmp-77",
            "quarantine.jsonl.tmp-77",
            "pictures/a.png.tmp-77",
            "evaluations/step-000000030.json.tmp-77",
            f"{CHECKPOINTS}/step-000000004-a01.tmp-77/x",
            "exports/.transformers-step-000000004.tmp-77/x",
        )
    },
    "checkpoint without COMMITTED": State(remove(f"{LAST}/{COMMITTED}"), 2),
    "empty checkpoint": State(lambda run: (run / FILE).mkdir(), 4),
    "COMMITTED is a folder": State(replace(f"{LAST}/{COMMITTED}", lambda path: path.mkdir()), 2),
    # lines of records
    **{
        f"{name} ends in {text[:60]!r}": State(add(name, text), 4)
        for name in RECORDS
        for text in (
            b'{"event": "start", "st',
            b"\0" * 4096,
            b"\0" * 9 + b"\n",
            b"\n\n",
            b"\xff\xfe\n",
            b"{}\n",
            b"[]\n",
            b"null\n",
            b'{"step": "4", "event": 7}\n',
            b"[" * 200_000 + b"\n",
            b'{"event": "finish", "step": "6", "position": null}\n',
            b'{"event": "evaluation", "time": 1, "step": 4, "PQ": "high"}\n',
        )
    },
    **{f"{name} is missing": State(remove(name), 4) for name in RECORDS},
    **{f"{name} is empty": State(write(name, ""), 4) for name in RECORDS},
    **{
        f"{name} is a folder": State(
            replace(name, lambda path: path.mkdir()), f"{name}: not a regular file", (name,)
        )
        for name in (*RECORDS, "summary.json")
    },
    **{
        f"{name} is a FIFO": State(replace(name, os.mkfifo), f"{name}: not a regular file", (name,))
        for name in RECORDS
    },
    **{
        f"{name} is a link": State(
            link(name, f"../other/{name}"), f"{name}: not a regular file", (name,)
        )
        for name in (*RECORDS, "summary.json")
    },
    # the user's own things among the checkpoints
    "copy of a checkpoint": theirs(lambda run: shutil.copytree(run / LAST, run / BAK), BAK),
    "file named like a checkpoint": theirs(write(FILE, "mine"), FILE),
    "FIFO named like a checkpoint": theirs(lambda run: os.mkfifo(run / FILE), FILE),
    "link to a checkpoint of another run": theirs(link(FILE, OTHER), FILE),
    "link named best": theirs(
        link(f"{CHECKPOINTS}/step-000000000-best", OTHER), CHECKPOINTS + "/step-000000000-best"
    ),
    "link with the name of the next checkpoint": theirs(link(NEXT, OTHER), NEXT),
    "file with the name of the next checkpoint": theirs(write(NEXT, "mine"), NEXT),
    "dangling link": theirs(link(FILE, "nowhere"), FILE),
    "folder with a short step": theirs(
        write(f"{CHECKPOINTS}/step-9-a1/x", ""), f"{CHECKPOINTS}/step-9-a1/x"
    ),
    "folder with words": theirs(
        write(f"{CHECKPOINTS}/step-final/x", ""), f"{CHECKPOINTS}/step-final/x"
    ),
    "records are hard links": State(
        lambda run: [
            (run / name).unlink() or (run / name).hardlink_to(run.parent / "other" / name)
            for name in RECORDS
        ],
        4,
    ),
    "last checkpoint is a link": State(link(LAST, OTHER), 2, (LAST,)),
    "checkpoints is a file": State(
        replace(CHECKPOINTS, lambda path: path.write_text("")), "checkpoints: not a folder"
    ),
    "checkpoints leads into another run": State(
        link(CHECKPOINTS, "../other/checkpoints"),
        "checkpoints: a link into the run",
        (CHECKPOINTS,),
    ),
    "evaluations leads into another run": State(
        link("evaluations", "../other/evaluations"), "evaluations: a link into the run"
    ),
    "checkpoints are on another disk": State(
        lambda run: (
            shutil.move(run / CHECKPOINTS, run / "../../disk"),
            (run / CHECKPOINTS).symlink_to("../../disk"),
        ),
        4,
    ),
    # damaged checkpoints
    **{
        f"{MANIFEST} is {text[:40]}": State(write(f"{LAST}/{MANIFEST}", text), 2)
        for text in (
            "",
            "{}",
            "[]",
            "null",
            '"x"',
            "{",
            "[" * 100_000,
            '{"state.safetensors": 1}',
            "\0" * 99,
            '{"/dev/zero": {"bytes": 0}}',
            '{"../../x": {"bytes": 0}}',
            '{"a\\u0000b": {}}',
        )
    },
    **{
        f"{MANIFEST} also lists {name!r}": State(
            lambda run, name=name: list_also(run / LAST, name), 2
        )
        for name in ("/dev/zero", "../../../secret", "fifo", "zero", "folder", "", "x" * 300)
    },
    **{
        f"{name} is a FIFO": State(replace(f"{LAST}/{name}", os.mkfifo), 2)
        for name in (MANIFEST, STATE, TRAINER_STATE)
    },
    **{
        f"{name} is /dev/zero": State(link(f"{LAST}/{name}", "/dev/zero"), 2)
        for name in (MANIFEST, STATE, TRAINER_STATE)
    },
    **{
        f"{name} is cut": State(cut(f"{LAST}/{name}"), 2)
        for name in (MANIFEST, STATE, TRAINER_STATE)
    },
    **{
        f"{TRAINER_STATE} is {text[:30]}": State(
            lambda run, text=text: rewrite(run / LAST, text), 2
        )
        for text in ("{}", "[]", "null", '{"step": 4}', "[" * 100_000)
    },
    "checkpoint under the name of another step": State(
        lambda run: (run / LAST).rename(run / FILE), 2, (FILE,)
    ),
    "all checkpoints are damaged": State(
        all_of(cut(f"{FIRST}/{STATE}"), cut(f"{LAST}/{STATE}")), "no checkpoint is intact"
    ),
    "all checkpoints are missing": State(remove(CHECKPOINTS), 0),
    "records are lost": State(remove(*RECORDS), 4),
    # files of the run
    **{
        f"environment.json is {text[:20]!r}": State(write("environment.json", text), 4)
        for text in ("", "{", "{}", "[]", '{"data": []}', '{"data": {"train": []}}', "\0" * 50)
    },
    "environment.json is missing": State(remove("environment.json"), 4),
    "environment.json is a FIFO": State(replace("environment.json", os.mkfifo), 4),
    **{
        f"config.yaml is {text[:20]!r}": State(write("config.yaml", text), r"config\.yaml")
        for text in (b"\xff\xfe", b"[]", b"{", b"7", b"\0" * 50)
    },
    **{
        f"config.yaml is {name}": State(
            replace("config.yaml", make), r"config\.yaml: .*not a regular file"
        )
        for name, make in {
            "a FIFO": os.mkfifo,
            "a folder": Path.mkdir,
            "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
        }.items()
    },
    "config.yaml is missing": State(
        remove("config.yaml"), r"config\.yaml: the settings .* missing"
    ),
    **{
        f"scores are {text[:20]!r}": State(write(SCORES, text), 4)
        for text in ("", "{", "[]", "{}", '{"step": 2, "PQ": 99}', '{"step": 4, "PQ": "high"}')
    },
    "scores are a FIFO": State(replace(SCORES, os.mkfifo), 4),
    **{
        f"user's {name}": theirs(write(name, "mine"), name)
        for name in (
            "evaluations/step-000000004.json.bak",
            "evaluations/step-9.json",
            "evaluations/step-x",
            "evaluations/val-3-step-000000009.json",
            "notes.txt",
            f"{CHECKPOINTS}/notes.txt",
        )
    },
    "lock is a link": State(link(".lock", "../other/config.yaml"), "symbolic link", (".lock",)),
    "lock is a folder": State(replace(".lock", lambda path: path.mkdir()), "directory"),
    "lock is a FIFO": State(replace(".lock", os.mkfifo), "not a regular file"),
    "a request to stop is left": State(write(".stop", ""), 4),
    "a request to stop is a link": State(link(".stop", "../other/config.yaml"), r"\.stop: not a"),
    "a request to stop is a folder": State(replace(".stop", Path.mkdir), r"\.stop: not a"),
    "lock has bytes": theirs(write(".lock", "mine"), ".lock"),
    # finished runs
    "finished": State(finished, STEPS),
    "finished, the last checkpoint is damaged": State(
        all_of(finished, cut(f"{CHECKPOINTS}/step-000000006-a01/{STATE}")), 4
    ),
    "finished, the last checkpoint is missing": State(
        all_of(finished, remove(f"{CHECKPOINTS}/step-000000006-a01")), 4
    ),
    "finished, all checkpoints are missing": State(
        all_of(finished, remove(CHECKPOINTS)), "no checkpoint is intact .all are missing"
    ),
    "finished after fewer steps": State(
        lambda run: eventlog.append(run, events.Finish(step=4, position=32)), 4
    ),
    "more steps were taken": State(
        lambda run: save(run, 8), "trainer.steps=6 is less than the 8 steps"
    ),
    "renamed": State(renamed, 4),
}


def list_also(folder: Path, name: str) -> None:
    """Add a name to the manifest, with the size 0 and the hash of no bytes."""
    os.mkfifo(folder / "fifo")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    manifest = checkpoint._manifest(folder)
    empty = {"bytes": 0, "xxh3_128": "99aa06d3014798d86001c324468d497f"}
    write_json(folder / MANIFEST, manifest | {name: empty})


def rewrite(folder: Path, text: str) -> None:
    """Replace the state of the trainer, with a manifest that agrees."""
    (folder / TRAINER_STATE).write_text(text)
    (folder / COMMITTED).unlink()
    (folder / MANIFEST).unlink()
    commit.commit(folder, {})


@pytest.mark.parametrize("name", [*RECORDS, CHECKPOINTS, "evaluations", "."])
def test_what_may_not_be_written_is_named(run, opened, monkeypatch, name):
    """Root may write everything, so that the test asks instead of the system."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run / name)
    with pytest.raises(UsageError, match="you may not write it; allow it") as refused:
        open_run(run, *opened)
    assert refused.value.problem.where == str(run / name)


@pytest.mark.parametrize("name", STATES)
def test_a_run_in_any_state_is_read_or_refused(run, elsewhere, name):
    """The commands that read a run either choose an intact checkpoint or say what is wrong."""
    STATES[name].change(run)
    before, other = contents(run), contents(elsewhere)
    refused = ""
    try:
        folder = configs.run_folder(str(run))
        config = configs.load_run(folder)
        check_files(folder)
        chosen = choose_checkpoint(folder, None, config.task)
        if problem := checkpoint.damage(chosen):
            raise checkpoint.damaged(chosen, problem)
        state, trainer = checkpoint.load(chosen)
        assert state["model.weight"][0] == trainer.progress.step
        assert summarize(folder, config.task)["step"] == trainer.progress.step
    except UsageError as error:
        refused = str(error)
    assert "\n" not in refused
    after = contents(run)
    assert after | {"summary.json": 0} == before | {"summary.json": 0}
    assert contents(elsewhere) == other


@pytest.mark.parametrize("name", STATES)
def test_every_state_has_a_defined_outcome(run, elsewhere, opened, name):
    state = STATES[name]
    state.change(run)
    before, other = contents(run), contents(elsewhere)
    if isinstance(state.outcome, int):
        assert resume(run, opened) == state.outcome
        assert STEPS in map(checkpoint.step_of, checkpoint.committed(run / CHECKPOINTS))
        chosen = choose_checkpoint(run, None, "panoptic")
        assert checkpoint.damage(chosen) is None
        assert eventlog.read_kind(run, events.Finish)[-1].step == STEPS
    else:
        with pytest.raises((UsageError, OSError), match=state.outcome):
            resume(run, opened)
        assert contents(run).items() >= before.items()
    assert contents(elsewhere) == other
    for path in state.theirs:
        assert contents(run)[path] == before[path]


def test_a_command_that_was_killed_before_its_first_config_starts_again(tmp_path, opened):
    """Older versions wrote environment.json first."""
    config, (train, val) = opened
    fingerprints = {"train": [train[0].manifest.fingerprint], "val": val.manifest.fingerprint}
    for names in ((), (".lock",), ("config.yaml.tmp-77", "environment.json.tmp-77", ".lock")):
        for has_environment in (False, True):
            folder = tmp_path / f"{len(names)}-{has_environment}"
            folder.mkdir()
            for name in names:
                (folder / name).write_text("{")
            if has_environment:
                write_json(folder / "environment.json", {"data": fingerprints})
            assert open_run(folder, *opened)
            assert configs.load_run(folder) == config
            assert configs.load_environment(folder)["data"] == fingerprints


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml.tmp-mine", "environment.json", "a/b"])
def test_a_folder_of_the_user_is_not_a_run(tmp_path, opened, name):
    write(name, "{}")(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError):
        open_run(tmp_path, *opened)
    assert contents(tmp_path) == before


def test_train_leaves_no_lock_in_a_folder_that_is_not_a_run(tmp_path, photographs):
    write("runs/photos/a.jpg", "mine")(tmp_path)
    before = contents(tmp_path)
    outcome = small.call(tmp_path, *small.words(photographs, "name=photos"))
    assert outcome.code == 2
    assert "the folder exists and is not a run" in small.complaint(outcome)
    assert contents(tmp_path) == before


def test_one_true_sentence_says_where_a_run_resumes(run, opened, capsys):
    config, stores = opened
    assert open_run(run, config, stores)
    assert capsys.readouterr().out == f"{run}: resuming from the checkpoint of step 4\n"
    cut(f"{LAST}/{STATE}")(run)
    assert open_run(run, config, stores)
    reason = f"checkpoint {Path(LAST).name} is skipped: {STATE} differs from {MANIFEST}"
    assert capsys.readouterr().out == f"{run}: resuming from the checkpoint of step 2 ({reason})\n"


def test_a_finished_run_names_its_damaged_checkpoint(run, opened, capsys):
    finished(run)
    cut(f"{CHECKPOINTS}/step-000000006-a01/{STATE}")(run)
    assert open_run(run, *opened)
    printed = capsys.readouterr().out
    assert "resuming from the checkpoint of step 4" in printed
    assert "checkpoint step-000000006-a01 is skipped" in printed
    assert "the finished run, step 6, is not intact" in printed


SHAPES = [
    (ScheduleSettings(name="poly"), True),
    (ScheduleSettings(milestones=[0.5]), True),
    (ScheduleSettings(milestones=[]), False),
    (ScheduleSettings(milestones=[], warmup_steps=9), False),
]


@pytest.mark.parametrize(("schedule", "is_said"), SHAPES)
@pytest.mark.parametrize("is_finished", [False, True])
def test_other_learning_rates_of_an_extended_run_are_said(
    run, opened, capsys, schedule, is_said, is_finished
):
    config = dataclasses.replace(opened[0], schedule=schedule)
    configs.save(config, run / "config.yaml")
    if is_finished:
        finished(run)
    with_steps = partial(dataclasses.replace, config.trainer)
    longer = dataclasses.replace(config, trainer=with_steps(steps=20))
    assert open_run(run, longer, opened[1])
    said = "the schedule now spans 20 instead of 6 steps: the learning rate after step "
    assert (said in capsys.readouterr().out) == is_said
    assert configs.load_run(run).trainer.steps == 20
    with pytest.raises(UsageError, match="less than the"):
        open_run(run, dataclasses.replace(longer, trainer=with_steps(steps=3)), opened[1])
    assert configs.load_run(run).trainer.steps == 20
