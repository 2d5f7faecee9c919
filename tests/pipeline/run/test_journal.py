"""The records of a run on a full disk, with a state that is not finite, and after a rename."""

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.data.keyed import keyed_seed
from pipeline.run import checkpoint, commit, eventlog, events, saver
from pipeline.run.checkpoint import Progress
from pipeline.run.folder import CHECKPOINTS, scores_path, summarize
from pipeline.run.info import RunInfo
from pipeline.run.journal import Journal
from pipeline.run.location import mark
from pipeline.run.quarantine import QUARANTINE
from pipeline.run.restarts import is_crash_loop
from pipeline.run.track import METRICS
from pipeline.settings import CheckpointSettings, RunSettings, WandbSettings
from shards import jsonl
from shards.errors import Failed
from shards.jsonl import rows
from tests.pipeline.runs import TAXONOMY, AtOnce, trainer_state

RECORDS = (eventlog.EVENTS, METRICS, QUARANTINE)


@dataclass
class StubEngine:
    """Stands for DeepSpeed: it has a state."""

    value: float

    def layout(self) -> dict[str, torch.Tensor]:
        return {"model.weight": torch.zeros(3), "exp_avg.weight": torch.tensor([0.0, self.value])}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self.layout().items())


def journal_of(folder: Path, keep: int = 1) -> Journal:
    folder.mkdir(exist_ok=True)
    info = RunInfo(
        name=folder.name, task="panoptic", launch="17.000", order={}, data={}, taxonomy=TAXONOMY,
        zero_stage=1, checkpoint=CheckpointSettings(keep=keep), max_damaged=10,
        wandb=WandbSettings(mode="disabled"), settings=RunSettings(),
    )  # fmt: skip
    return Journal(folder, info, torch.device("cpu"))


def save(journal: Journal, step: int, value: float = 1.0, required: bool = False) -> None:
    engine = StubEngine(value)
    journal.save(Progress(step, 8 * step, step), engine, required=required)  # pyright: ignore[reportArgumentType]
    journal.is_saved(step)  # records it


def steps_of(folder: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.committed(folder / CHECKPOINTS)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Write checkpoints in this process; test_saver.py has the process that does it."""
    monkeypatch.setattr(saver, "Writer", AtOnce)


@pytest.fixture
def full(monkeypatch):
    """Return a set of file names that the disk refuses."""
    refused: set[str] = set()
    append = jsonl.append

    def append_or_fail(path: Path, row: jsonl.Row) -> None:
        if path.name in refused:
            with path.open("ab") as file:
                file.write(b'{"torn')
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, row)

    monkeypatch.setattr(jsonl, "append", append_or_fail)
    return refused


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_not_saved_and_nothing_is_pruned(tmp_path, value):
    journal = journal_of(tmp_path)
    for step in (2, 4):
        save(journal, step)
    with pytest.raises(Failed, match=r"step 6: exp_avg\.weight has values that are not finite"):
        save(journal, 6, value)
    assert steps_of(tmp_path) == [4]
    assert journal_of(tmp_path).checkpoint == tmp_path / CHECKPOINTS / checkpoint.name_of(4, 1)


def test_initial_weights_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(Failed, match=r"give other model\.weights or model\.init_from"):
        save(journal_of(tmp_path), 0, float("nan"), required=True)
    assert steps_of(tmp_path) == []


@pytest.mark.parametrize("names", [{name} for name in RECORDS] + [set(RECORDS)], ids=sorted)
def test_rows_wait_until_the_disk_has_space(tmp_path, full, names):
    """A full disk costs no row and does not end the run."""
    journal = journal_of(tmp_path)
    full |= names
    for step in (1, 2):
        journal.metrics(Progress(step, 8 * step, step), {"loss": 1.0})
        found = {"position": step, "set": "train", "key": f"{step}", "reason": "its hash differs"}
        journal.damaged(step, [found])
    full.clear()
    journal.metrics(Progress(3, 24, 3), {"loss": 1.0})
    assert [row["step"] for row in rows(tmp_path / METRICS)] == [1, 2, 3]
    assert [row["key"] for row in rows(tmp_path / QUARANTINE)] == ["1", "2"]
    quarantined = eventlog.read_kind(tmp_path, events.Quarantined)
    assert [event.samples for event in quarantined] == [["1"], ["2"]]
    warned = {event.text for event in eventlog.read_kind(tmp_path, events.Warned)}
    reason = "cannot be written ([Errno 28] No space left on device); its rows wait in memory"
    assert warned
    assert warned <= {f"{name} {reason}" for name in names}


def test_scores_that_cannot_be_written_do_not_end_the_run(tmp_path, recwarn):
    journal = journal_of(tmp_path)
    scores_path(tmp_path, 4).mkdir(parents=True)
    journal.scored(4, {"PQ": 50.0})
    assert "the scores of step 4 cannot be written" in str(recwarn.pop().message)
    assert not journal.is_scored(4)
    assert eventlog.read_kind(tmp_path, events.Evaluation)[0].scores == {"PQ": 50.0}


@pytest.mark.parametrize("required", [False, True])
def test_only_a_required_checkpoint_ends_the_run_on_a_full_disk(tmp_path, monkeypatch, required):
    """The first checkpoint is required, and the last one: a finished run has its weights."""
    journal = journal_of(tmp_path)
    save(journal, 2)
    with monkeypatch.context() as patch:
        patch.setattr(commit, "_write_state", lambda *_: _raise(errno.ENOSPC))
        if required:
            with pytest.raises(Failed, match="the disk is full; free space"):
                save(journal, 4, required=True)
        else:
            save(journal, 4)
    (failed,) = eventlog.read_kind(tmp_path, events.CheckpointFailed)
    assert failed.step == 4
    assert steps_of(tmp_path) == [2]


def _raise(code: int) -> None:
    raise OSError(code, "No space left on device")


def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_run(tmp_path, monkeypatch, recwarn):
    journal = journal_of(tmp_path)
    save(journal, 2)
    monkeypatch.setattr(commit.shutil, "rmtree", lambda *_, **__: _raise(errno.EACCES))
    save(journal, 4)
    assert "an old checkpoint cannot be removed" in str(recwarn.pop().message)
    assert steps_of(tmp_path) == [4]


def test_a_score_is_shown_with_its_own_weights(tmp_path):
    """The best step that has a checkpoint is kept, and its score is that of the summary."""
    journal = journal_of(tmp_path)
    for step, quality in ((2, 50.0), (3, None), (4, 40.0), (5, None), (6, 30.0)):
        save(journal, step)
        if quality:
            journal.scored(step, {"PQ": quality})
    journal.scored(7, {"PQ": 99.0})  # its checkpoint could not be written
    assert steps_of(tmp_path) == [6, 2]
    with pytest.warns(UserWarning, match="of step 7, which has no checkpoint"):
        summary = summarize(tmp_path, "panoptic")
    assert (summary["step"], summary["PQ"]) == (2, 50.0)
    assert summary["checkpoint"] == checkpoint.name_of(2, 1)


def test_a_run_keeps_its_identity_when_its_folder_is_renamed(tmp_path):
    first = journal_of(tmp_path / "before").run_id
    (tmp_path / "before").rename(tmp_path / "after")
    assert journal_of(tmp_path / "after").run_id == first
    assert first.startswith("before-")
    assert journal_of(tmp_path / "before").run_id != first  # another run


def test_a_copy_of_a_run_has_an_identity_of_its_own(tmp_path):
    first = journal_of(tmp_path / "before").run_id
    shutil.copytree(tmp_path / "before", tmp_path / "copy")
    copied = journal_of(tmp_path / "copy").run_id
    assert copied != first
    shutil.rmtree(tmp_path / "before")
    assert journal_of(tmp_path / "copy").run_id == copied


def test_a_run_that_is_copied_to_storage_and_back_keeps_its_identity(tmp_path):
    first = journal_of(tmp_path / "before").run_id
    there = Path(shutil.copytree(tmp_path / "before", tmp_path / "there"))
    mark(there, "s3://bucket/runs/before")
    assert journal_of(there).run_id == first
    assert eventlog.read_kind(there, events.Start)[-1].folder == "s3://bucket/runs/before"
    shutil.copytree(there, tmp_path / "back")
    assert journal_of(tmp_path / "back").run_id == first


def test_a_run_of_an_older_version_keeps_the_identity_of_its_folder(tmp_path):
    eventlog.append(tmp_path, events.Start(world_size=1, step=0))
    known = f"{tmp_path.name}-{keyed_seed(tmp_path) % 16**8:08x}"
    assert journal_of(tmp_path).run_id == known
    assert journal_of(tmp_path).run_id == known


def test_an_attempt_never_takes_the_name_of_an_existing_checkpoint(tmp_path):
    path = tmp_path / CHECKPOINTS / checkpoint.name_of(4, 7)
    checkpoint.save(path, {}, trainer_state(4))
    assert journal_of(tmp_path).attempt == 8  # without a record of the starts
    assert journal_of(tmp_path).attempt == 9


def test_unreadable_lines_are_counted_once(tmp_path):
    journal_of(tmp_path).metrics(Progress(0, 0, 0), {"loss": 1.0})
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b"\0\0\n{}\n\n{")
    for _ in range(2):
        journal_of(tmp_path)
    (damage,) = eventlog.read_kind(tmp_path, events.Damage)
    assert damage.text == f"{METRICS} has 3 lines that cannot be read; they are left out"
    assert [row["step"] for row in rows(tmp_path / METRICS)] == [0]


def start(step: int, launch: str = "1") -> events.Start:
    return events.Start(launch=launch, world_size=2, step=step)


def failure(lost_peer: bool = False, launch: str = "1") -> events.Failure:
    return events.Failure(launch=launch, rank=0, kind="E", text="x", lost_peer=lost_peer)


OWN, PEER = failure(), failure(lost_peer=True)


@pytest.mark.parametrize(
    ("history", "is_loop"),
    [
        ([start(2), OWN] * 3, True),
        ([start(0), OWN, *[start(2), OWN, PEER] * 3], True),
        ([start(2), OWN] * 2, False),
        ([start(2)] * 9, False),  # killed from outside
        ([start(2), PEER] * 9, False),  # so were the peers
        ([start(2), OWN, start(2), start(2), OWN, start(2), OWN], False),  # killed in between
        ([start(2), start(2), OWN, start(2), OWN, start(2), OWN], True),
        ([start(0), OWN, start(2), OWN, start(4), OWN], False),
        ([start(2, "0"), failure(launch="0")] * 3, False),  # an earlier command
        ([start(2), OWN] * 3 + [start(2)], False),
    ],
)
def test_only_errors_of_its_own_end_a_run_that_fails_at_one_step(history, is_loop):
    assert is_crash_loop(history, "1") == is_loop
