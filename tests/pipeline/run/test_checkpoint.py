"""A checkpoint is complete or ignored, whatever happens while it is written or afterwards."""

import errno
import json
import resource
from pathlib import Path

import pytest
import torch

from pipeline.run import checkpoint, commit, retention
from pipeline.run.checkpoint import COMMITTED, MANIFEST, STATE, TRAINER_STATE, TrainerState
from shards.errors import UsageError
from tests.pipeline.runs import TAXONOMY, trainer_state


def state_of(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {
        "model.weight": torch.randn(40, 5, generator=draw),
        "model.count": torch.tensor(step),
        "exp_avg.weight": torch.randn(40, 5, generator=draw).double(),
    }


def save(root: Path, step: int, attempt: int = 1) -> Path:
    """Save a checkpoint of a sharded engine, which has its own files in the folder."""
    folder = root / checkpoint.name_of(step, attempt)
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "rank0.pt").write_bytes(bytes(range(100)))
    checkpoint.save(folder, state_of(step), trainer_state(step))
    return folder


def newest(root: Path) -> tuple[str | None, list[str]]:
    """Return the name of the newest intact checkpoint, and the reports."""
    reported: list[str] = []
    found = checkpoint.newest(root, reported.append)
    return found and found.name, reported


def prune(root: Path, step: int, keep: int, best: int | None) -> None:
    for folder in retention.outdated_in(root, step, keep, best):
        commit.remove(folder)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_is_saved_is_loaded_to_the_bit(tmp_path):
    folder = save(tmp_path, 7)
    assert checkpoint.damage(folder) is None
    state, trainer = checkpoint.load(folder)
    assert state.keys() == state_of(7).keys()
    for name, tensor in state_of(7).items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert trainer == trainer_state(7)
    assert (folder / "deepspeed" / "rank0.pt").read_bytes() == bytes(range(100))


def test_the_state_of_the_trainer_has_the_same_json_as_ever(tmp_path):
    folder = save(tmp_path, 7)
    document = json.loads((folder / TRAINER_STATE).read_text())
    later = {name: document.pop(name) for name in ("rewinds", "watched")}
    assert later == {
        "rewinds": 0, "watched": {"losses": [], "jumped": False, "skipped_in_a_row": 0},
    }  # fmt: skip
    assert TrainerState.from_json(document) == checkpoint.load_trainer(folder)  # older ones
    assert document == {
        "step": 7, "position": 56, "updates": 7, "order": {}, "world_size": 1, "zero_stage": 1,
        "taxonomy": json.loads(json.dumps(TAXONOMY.to_json())), "versions": {},
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", "[]", '{"step": 7}'])
def test_a_damaged_state_of_the_trainer_is_a_usage_error(tmp_path, content):
    folder = save(tmp_path, 7)
    (folder / TRAINER_STATE).write_text(content)
    with pytest.raises(UsageError, match="the checkpoint is damaged"):
        checkpoint.load_trainer(folder)


def test_only_checkpoints_before_a_step_are_left_if_one_is_intact(tmp_path):
    for step, attempt in ((3, 1), (6, 1), (6, 2), (9, 1)):
        save(tmp_path, step, attempt)
    (tmp_path / checkpoint.name_of(6, 2) / STATE).write_bytes(b"damaged")
    before = names(tmp_path)
    assert checkpoint.return_before(tmp_path, 3) is None
    assert names(tmp_path) == before
    left = checkpoint.return_before(tmp_path, 8)
    assert left is not None
    assert left.name == checkpoint.name_of(6, 1)
    assert names(tmp_path) == before[:3]


def test_names_carry_step_and_attempt():
    assert checkpoint.name_of(1200, 3) == "step-000001200-a03"
    assert checkpoint.step_of(Path("x/step-000001200-a03")) == 1200


class Killed(BaseException):
    """Stands for the death of the process: no handler for errors runs."""


class Writes:
    """Allows a number of writes to disk and kills at the next one."""

    def __init__(self, monkeypatch, allowed: int):
        self.left, self.killed = allowed, False
        monkeypatch.setattr(commit, "sync", self.before(commit.sync))
        monkeypatch.setattr(Path, "write_text", self.before(Path.write_text))
        monkeypatch.setattr(Path, "touch", self.before(Path.touch))
        monkeypatch.setattr(Path, "mkdir", self.before(Path.mkdir))

    def before(self, write):
        def guarded(*args, **options):
            if self.left == 0:
                self.killed = True
                raise Killed
            self.left -= 1
            return write(*args, **options)

        return guarded


def test_a_kill_at_any_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    before = save(tmp_path, 1)
    outcomes = []
    for allowed in range(40):
        with monkeypatch.context() as patch:
            writes = Writes(patch, allowed)
            try:
                folder = save(tmp_path, 2, attempt=allowed)
            except Killed:
                folder = tmp_path / checkpoint.name_of(2, allowed)
        whole = (folder / COMMITTED).exists()
        assert (checkpoint.damage(folder) is None) == whole
        assert newest(tmp_path) == (folder.name if whole else before.name, [])
        outcomes.append(whole)
        if whole:
            checkpoint.load(folder)
            (folder / COMMITTED).unlink()
        if not writes.killed:
            break
    assert outcomes == sorted(outcomes)  # incomplete before COMMITTED, complete from then on
    assert outcomes.count(True) == 3  # killed at one of the last two fsyncs, and not killed
    assert len(outcomes) > 10


def test_everything_is_on_disk_before_the_mark(tmp_path, monkeypatch):
    flushed, at_mark = [], []
    fsync, touch = commit.sync, Path.touch

    def recorded_fsync(path):
        flushed.append(path)
        fsync(path)

    def recorded_touch(path):
        at_mark.extend(flushed)
        touch(path)

    monkeypatch.setattr(commit, "sync", recorded_fsync)
    monkeypatch.setattr(Path, "touch", recorded_touch)
    folder = save(tmp_path, 1)
    files = {path for path in folder.rglob("*") if path.is_file()} - {folder / COMMITTED}
    assert {STATE, TRAINER_STATE, MANIFEST, "rank0.pt"} == {path.name for path in files}
    assert {*files, folder / "deepspeed", folder} == set(at_mark)
    assert flushed[-2:] == [folder, tmp_path]  # COMMITTED, and the name of the folder


FILES = [STATE, TRAINER_STATE, "deepspeed/rank0.pt"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["flip first", "flip last", "truncate", "empty", "remove"])
def test_damage_falls_back_to_the_checkpoint_before_and_is_reported(tmp_path, file, harm):
    before, damaged = save(tmp_path, 10), save(tmp_path, 20)
    path = damaged / file
    content = bytearray(path.read_bytes())
    if harm.startswith("flip"):
        content[0 if harm == "flip first" else -1] ^= 1
        path.write_bytes(content)
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content[: 0 if harm == "empty" else -1])
    found, (reported,) = newest(tmp_path)
    assert found == before.name
    assert damaged.name in reported
    assert file in reported


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', None])
def test_a_damaged_manifest_falls_back_too(tmp_path, content):
    before, damaged = save(tmp_path, 10), save(tmp_path, 20)
    if content is None:
        (damaged / MANIFEST).unlink()
    else:
        (damaged / MANIFEST).write_text(content)
    found, (reported,) = newest(tmp_path)
    assert found == before.name
    assert damaged.name in reported


def test_every_byte_of_the_state_is_covered(tmp_path):
    folder = save(tmp_path, 1)
    content = (folder / STATE).read_bytes()
    for offset in range(0, len(content), 97):
        changed = bytearray(content)
        changed[offset] ^= 4
        (folder / STATE).write_bytes(changed)
        assert STATE in checkpoint.damage(folder)
    (folder / STATE).write_bytes(content)
    assert checkpoint.damage(folder) is None


def test_without_a_checkpoint_none_is_found(tmp_path):
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "nowhere") == (None, [])
    (save(tmp_path, 1) / STATE).write_bytes(b"")
    found, reported = newest(tmp_path)
    assert found is None
    assert len(reported) == 1


def test_newest_is_the_highest_step_then_the_latest_attempt(tmp_path):
    for step, attempt in ((9, 4), (100, 1), (20, 2), (100, 12), (100, 2)):
        save(tmp_path, step, attempt)
    (save(tmp_path, 200) / COMMITTED).unlink()
    found = [path.name[5:] for path in checkpoint.committed(tmp_path)]
    assert found == [
        "000000100-a12", "000000100-a02", "000000100-a01", "000000020-a02", "000000009-a04",
    ]  # fmt: skip


def test_loading_a_damaged_checkpoint_is_a_usage_error(tmp_path):
    folder = save(tmp_path, 1)
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:-9])
    with pytest.raises(UsageError, match=rf"{folder}: the checkpoint is damaged .*; restore it"):
        checkpoint.load(folder)


@pytest.mark.parametrize("at", ["_write_state", "fingerprint", "sync"])
def test_a_full_disk_removes_the_partial_folder_and_raises(tmp_path, monkeypatch, at):
    before = save(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(commit, at, full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
    assert names(tmp_path) == [before.name]
    save(tmp_path, 2)
    assert newest(tmp_path) == (checkpoint.name_of(2, 1), [])


def test_a_write_that_really_fails_is_an_os_error(tmp_path):
    """The system refuses files of more than 4000 bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(
                tmp_path / checkpoint.name_of(1, 1), {"a": torch.zeros(9999)}, trainer_state(1)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    prune(tmp_path, step=50, keep=2, best=20)
    assert [name[9:14] for name in names(tmp_path)] == ["00020", "00040", "00050"]
    prune(tmp_path, step=50, keep=1, best=None)
    assert [name[9:14] for name in names(tmp_path)] == ["00050"]


def test_prune_removes_what_a_crash_has_left(tmp_path):
    save(tmp_path, 10)
    (save(tmp_path, 30) / COMMITTED).unlink()
    (save(tmp_path, 20) / COMMITTED).unlink()
    save(tmp_path, 20, attempt=2)
    prune(tmp_path, step=20, keep=3, best=None)
    assert names(tmp_path) == ["step-000000010-a01", "step-000000020-a02"]


def test_prune_never_takes_the_checkpoint_just_written(tmp_path):
    """Step 100 is damaged, so that the run resumed from 60 and has now reached 80."""
    save(tmp_path, 60)
    (save(tmp_path, 100) / STATE).write_bytes(b"")
    save(tmp_path, 80, attempt=2)
    prune(tmp_path, step=80, keep=1, best=None)
    assert names(tmp_path) == ["step-000000080-a02", "step-000000100-a01"]
    assert newest(tmp_path)[0] == "step-000000080-a02"


def test_a_kill_while_pruning_leaves_nothing_that_looks_whole_and_is_not(tmp_path, monkeypatch):
    save(tmp_path, 10)
    save(tmp_path, 20)

    def killed(folder):
        (folder / STATE).unlink()
        raise Killed

    monkeypatch.setattr(commit.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        prune(tmp_path, step=20, keep=1, best=None)
    assert newest(tmp_path) == ("step-000000020-a01", [])
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-000000020-a01"]


def test_the_manifest_names_size_and_hash_of_every_file(tmp_path):
    folder = save(tmp_path, 1)
    listed = json.loads((folder / MANIFEST).read_text())
    assert set(listed) == set(FILES)
    assert all(listed[name]["bytes"] == (folder / name).stat().st_size for name in FILES)
