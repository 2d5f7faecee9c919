"""Where a run is kept, and what a command sees of a run on storage."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import config as configs
from jobs.interrupts import requests
from jobs.stored import Home, View, opened
from jobs.train import _interruption
from pipeline.run import checkpoint, stop, storage
from pipeline.run.folder import CHECKPOINTS
from pipeline.run.lease import LEASE
from pipeline.run.location import location_of
from shards.errors import UsageError
from shards.files import write_json
from shards.remote import RemoteFolder
from tests.jobs import small
from tests.shards.raw import SAMPLE

SETS = ["data.train=a", "data.val=b"]


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ("s33://bucket/runs", "runs=s33://bucket/runs: Protocol not known: s33; did you mean s3?"),
        ("s3:/bucket/runs", "neither a URL nor a folder; write s3://bucket/runs, or"),
        ("gs://bucket/runs", "install gcsfs"),
        ("https://host/runs", "a web server does not keep runs"),
        ("s3://key:hidden@host/runs", "the URL holds a user or a password"),
        ("", "give a folder or a URL"),
    ],
)
def test_a_location_that_cannot_keep_runs_is_one_clear_line(runs, text):
    with pytest.raises(UsageError) as raised:
        configs.load("tiny", [*SETS, f"runs={runs}"])
    line = str(raised.value)
    assert text in line
    assert "\n" not in line
    assert "hidden" not in line


def test_runs_are_in_a_folder_or_at_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2F_CACHE", str(tmp_path / "cache"))
    here = Home.of(configs.load("tiny", SETS))
    assert (here.folder, here.url) == (tmp_path / "runs" / "tiny", None)
    there = Home.of(configs.load("tiny", [*SETS, "runs=s3://bucket/a/", "name=b"]))
    assert there.url == "s3://bucket/a/b"
    assert there.folder.is_relative_to(tmp_path / "cache" / "views")
    assert location_of(there.folder / "x") == "s3://bucket/a/b/x"
    assert location_of(here.folder / "x") == str(here.folder / "x")


@pytest.fixture
def stored(tmp_path, photographs, monkeypatch) -> Home:
    """Put the small run, as it is after its first checkpoint, on a storage of this process."""
    monkeypatch.setenv("M2F_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "EVERY_S", 0.05)
    run = small.untrained(tmp_path, photographs)
    url = f"memory://{tmp_path}/runs/small"
    for path in storage.files_of(run):
        RemoteFolder(url).send(path, path.relative_to(run).as_posix())
    return Home(storage.local_folder(url, storage.VIEWS), url)


def test_a_command_sees_the_small_files_of_a_run_and_sizes_tell_what_is_whole(stored):
    assert stored.url
    stored.take()
    name = checkpoint.name_of(0, 1)
    assert not (stored.folder / CHECKPOINTS / name / checkpoint.STATE).exists()
    reported: list[str] = []
    newest = stored.newest(reported.append)
    assert newest
    assert (newest.name, reported) == (name, [])
    RemoteFolder(stored.url).write(f"{CHECKPOINTS}/{name}/{checkpoint.STATE}", b"cut")
    assert stored.newest(reported.append) is None
    assert "its files differ from its manifest" in reported[0]
    (stored.folder / CHECKPOINTS / name / checkpoint.MANIFEST).write_text("[]")
    assert stored.newest(reported.append) is None


def test_an_error_names_the_run_and_not_its_copy(stored):
    with (
        pytest.raises(UsageError, match=r"^memory:.*/runs/small/config\.yaml: wrong"),
        stored.named(),
    ):
        raise UsageError("wrong", where=stored.folder / "config.yaml")
    with pytest.raises(UsageError, match=r"^elsewhere: wrong"), stored.named():
        raise UsageError("wrong", where="elsewhere")


def test_a_view_follows_the_run_and_passes_on_a_request_to_stop(stored):
    assert stored.url
    remote, lines = RemoteFolder(stored.url), []
    with View(stored, lines.append):
        remote.write("events.jsonl", b'{"event": "x"}\n')
        wait_for(stored.folder / "events.jsonl")
        stop.request(stored.folder)
        until(lambda: stop.STOP in remote.files())
        remote.write("summary.json", b"{}")
    assert (stored.folder / "summary.json").read_text() == "{}"
    stored.withdraw_stop()
    assert stop.STOP not in remote.files()
    assert not stop.is_requested(stored.folder)
    assert lines == []


def test_a_view_says_that_the_storage_is_away_and_how_it_ended(stored, monkeypatch):
    assert stored.url
    lines: list[str] = []
    view = View(stored, lines.append)
    with view:
        wait_for(stored.folder / "config.yaml")
        with monkeypatch.context() as patch:
            patch.setattr(view._remote, "_call", away)
            until(lambda: len(lines) == 1)
        until(lambda: len(lines) == 2)
        monkeypatch.setattr(view._remote, "_call", away)
    assert "does not answer" in lines[0]
    assert "answers again" in lines[1]
    assert "refused" in view.failure


def away(*_: object, **__: object) -> None:
    raise ConnectionError("refused")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for(path: Path) -> None:
    until(path.exists)


def test_what_a_command_writes_into_a_run_is_sent(stored, capsys):
    assert stored.url
    remote = RemoteFolder(stored.url)
    with opened(stored.url) as folder:
        assert checkpoint.damage(folder / CHECKPOINTS / checkpoint.name_of(0, 1)) is None
        write_json(folder / "evaluations" / "other-5.json", {"PQ": 1})
        with opened(stored.url, needs_weights=False) as second:  # at the same time
            assert second != folder
            assert (second / "config.yaml").exists()
    assert json.loads(remote.read("evaluations/other-5.json")) == {"PQ": 1}
    assert f"sent: {stored.url}/evaluations/other-5.json" in capsys.readouterr().out
    assert "config.yaml" in remote.files()
    with pytest.raises(UsageError, match="no run is there"), opened(f"{stored.url}s"):
        pass
    with pytest.raises(UsageError, match="no run is there"):
        configs.check_run(f"{stored.url}s")


def test_a_lease_in_a_folder_may_be_there_before_the_config(tmp_path):
    home = Home(tmp_path / "runs" / "a b#1")
    home.folder.mkdir(parents=True)
    with home.lease():
        assert [path.name for path in home.folder.iterdir()] == [LEASE]
    assert list(home.folder.iterdir()) == []


def test_a_run_that_somebody_has_stopped_is_resumed_by_the_same_command(tmp_path):
    requests.reset()
    error = _interruption(tmp_path, "./launch.sh train tiny")
    assert error.exit_code == 75
    assert str(error) == (
        f"{tmp_path}: stopped on request; the newest checkpoint is not written yet; "
        "to resume: ./launch.sh train tiny"
    )


def test_commands_take_the_url_of_a_run_and_write_there(stored, tmp_path):
    assert stored.url
    evaluated = small.call(tmp_path, "evaluate", stored.url, "--images", "1", "--json")
    assert evaluated.code == 0, evaluated.err
    assert "PQ" in json.loads(evaluated.out)
    images = str(SAMPLE / "val2017")
    predicted = small.call(tmp_path, "predict", stored.url, images, "--out", "predictions")
    assert predicted.code == 0, predicted.err
    assert (tmp_path / "predictions" / "panoptic.json").exists()
    replayed = small.call(tmp_path, "replay", stored.url, "--step", "1")
    assert replayed.code == 0, replayed.err
    names = set(RemoteFolder(stored.url).files())
    assert {"summary.json", "evaluations/val-1-step-000000000.json"} <= names
    assert {"pictures/val-1-step-000000000.png", "pictures/replay-step-000000001.png"} <= names
    missing = small.call(tmp_path, "predict", f"{stored.url}s", images, "--out", "predictions")
    assert missing.code == 2
    assert "no run is there" in small.complaint(missing)
