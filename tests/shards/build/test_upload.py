"""Shard sets built below a URL: the bytes of a local build, whatever the server does."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.data.cache import CacheSettings
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, train_stream
from shards.build.build import build
from shards.build.writer import TarWriter
from shards.errors import DataError, Failed, UsageError
from shards.parallel import processes
from shards.remote import RetryPolicy
from shards.verify import verify
from tests.damage import flip
from tests.jobs import small
from tests.pipeline.servers import s3
from tests.shards.build.test_build import KILLED, tree
from tests.shards.raw import SAMPLE, sky, write

SHARDS = 4
POLICY = RetryPolicy(tries=3, first_pause_s=0)
WORK = "jobs=1, work=Path(sys.argv[4])"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw"), [sky(f"{n}.png") for n in range(9)])


@pytest.fixture(scope="module")
def plain(raw, tmp_path_factory):
    """The hashes of the same build in a folder."""
    out = tmp_path_factory.mktemp("plain")
    build("coco", raw, out, shards=SHARDS, jobs=1, report=lambda _: None)
    return tree(out)


@pytest.fixture
def sent(monkeypatch):
    """The names of all files sent to a file:// URL, in order."""
    names, put = [], LocalFileSystem.put_file

    def put_file(self, path, target, **options):
        names.append(Path(target).name)
        put(self, path, target, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    monkeypatch.setattr("shards.remote.DEFAULT_POLICY", POLICY)
    return names


@pytest.fixture
def made(monkeypatch):
    """A list that grows by one entry per tar that is written."""
    tars = []

    def writer(*args, **options):
        tars.append(1)
        return TarWriter(*args, **options)

    monkeypatch.setattr("shards.build.writer.TarWriter", writer)
    return tars


def run(raw, folder, **options):
    """Build to folder/there by URL, and return the reported lines."""
    lines = []
    build(
        *("coco", raw, f"file://{folder}/there"),
        **{"shards": SHARDS, "jobs": 1, "work": folder / "work", "report": lines.append} | options,
    )
    return lines


def broken(monkeypatch, names, times, half=False):
    """Let uploads of these files fail: half of each arrives, with an error unless `half`."""
    left, put = dict.fromkeys(names, times), LocalFileSystem.put_file

    def put_file(self, path, target, **options):
        put(self, path, target, **options)
        name = Path(target).name
        if left.get(name, 0):
            left[name] -= 1
            size = Path(target).stat().st_size // 2
            Path(target).write_bytes(Path(target).read_bytes()[:size])
            if not half:
                raise ConnectionResetError("gone")

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)


def test_a_set_built_to_s3_is_the_local_one_and_streams(tmp_path, tmp_path_factory, monkeypatch):
    photographs = small.photographs(tmp_path_factory.getbasetemp())
    with s3(monkeypatch, "sets") as client:
        options = ["--root", str(SAMPLE), "--out", "s3://sets/coco/", "--shards", "2"]
        command = ["build", "coco", *options, "--jobs", "1", "--work", "work"]
        outcome = small.call(tmp_path, *command)
        assert outcome.code == 0, outcome.err
        assert "s3://sets/coco/train: 10 images in 2 shards" in outcome.out
        objects = client.list_objects_v2(Bucket="sets")["Contents"]
        there = {
            one["Key"].removeprefix("coco/"): hashlib.sha256(
                client.get_object(Bucket="sets", Key=one["Key"])["Body"].read()
            ).hexdigest()
            for one in objects
        }
        assert there == tree(photographs)
        assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
        again = small.call(tmp_path, *command)
        assert again.out.count("holds this build already") == 2

        cache = CacheSettings(str(tmp_path / "cache"), gib=1)
        settings, share = DataSettings(crop=64, cache=cache), BatchSplit(4, 2)
        streams = (
            train_stream(settings, [Store(location, cache=cache)], "panoptic", 5, 0, share)
            for location in ("s3://sets/coco/train", photographs / "train")
        )
        for remote, local in islice(zip(*streams, strict=True), 3):
            assert remote.keys == local.keys
            assert (remote.images == local.images).all()
            assert (remote.targets.maps == local.targets.maps).all()

        command[command.index("s3://sets/coco/")] = "s3://nosuch/coco"
        monkeypatch.setattr("shards.remote.DEFAULT_POLICY", POLICY)
        outcome = small.call(tmp_path, *command)
        assert outcome.code == 2
        text = "nosuch/coco/train/.build/lock: the server has no such bucket"
        assert text in small.complaint(outcome)


def test_the_manifest_is_sent_last_and_a_rerun_sends_nothing(raw, plain, tmp_path, sent):
    run(raw, tmp_path)
    assert tree(tmp_path / "there") == plain
    assert sent[-3:] == ["findings.jsonl", "samples.parquet", "manifest.json"]
    assert sent[:4] == ["lock", "000000.tar", "000000.tar.idx", "000000.json"]
    sent.clear()
    assert any("holds this build already" in line for line in run(raw, tmp_path))
    assert sent == []


def test_only_what_is_missing_or_differs_is_sent_again(raw, plain, tmp_path, sent, made):
    run(raw, tmp_path)
    for damage in (Path.unlink, lambda path: path.write_bytes(b"short")):
        damage(tmp_path / "there/val/000002.tar")
        sent.clear()
        made.clear()
        run(raw, tmp_path)
        assert [name for name in sent if name.startswith("0")] == [
            *("000002.tar", "000002.tar.idx", "000002.json")
        ]
        assert len(made) == 1
        assert tree(tmp_path / "there") == plain


def test_a_failed_upload_is_tried_again(raw, plain, tmp_path, monkeypatch, sent):
    broken(monkeypatch, ["000001.tar", "samples.parquet", "manifest.json"], POLICY.tries - 1)
    run(raw, tmp_path)
    assert tree(tmp_path / "there") == plain
    assert sent.count("000001.tar") == POLICY.tries


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("name", "tars"),
    [
        *(("000000.tar.idx", 1), ("000001.tar", 2), ("000001.json", 2)),
        *(("samples.parquet", SHARDS), ("manifest.json", SHARDS)),
    ],
)
def test_a_server_that_fails_is_named_and_the_next_run_resumes(
    raw, plain, tmp_path, monkeypatch, sent, made, name, tars, half
):
    with monkeypatch.context() as patch:
        broken(patch, [name], POLICY.tries, half)
        reason = "bytes arrived" if half else "gone"
        with pytest.raises(Failed, match=rf"file://.*/val/.*{name}: 3 tries failed, .*{reason}"):
            run(raw, tmp_path)
    with pytest.raises((UsageError, ValueError)):
        Store(tmp_path / "there/val")
    assert len(made) == tars
    run(raw, tmp_path)
    assert tree(tmp_path / "there") == plain
    assert len(made) == SHARDS  # the shard that was built is only sent


def test_killed_and_run_again_is_the_same(raw, plain, tmp_path):
    script = KILLED.replace("Path(sys.argv[2])", "sys.argv[2]").replace("jobs=1", WORK)
    url = f"file://{tmp_path}/there"
    command = [sys.executable, "-c", script, raw, url, "7", tmp_path / "work"]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    there = tree(tmp_path / "there")
    assert there
    assert "val/manifest.json" not in there
    assert there.items() <= plain.items()
    run(raw, tmp_path)
    assert tree(tmp_path / "there") == plain


def test_fewer_shards_and_changed_images(raw, tmp_path):
    raw = shutil.copytree(raw, tmp_path / "raw")
    run(raw, tmp_path, jobs=2)
    run(raw, tmp_path, shards=2)
    build("coco", raw, tmp_path / "two", shards=2, jobs=1, report=lambda _: None)
    expected = tree(tmp_path / "two")
    assert tree(tmp_path / "there") == expected
    image = raw / "val2017/3.png"
    image.write_bytes(image.read_bytes()[:-1] + b"!")  # of the same size
    assert any("older build" in line for line in run(raw, tmp_path, shards=2))
    changed = tree(tmp_path / "there")
    tars = [path for path in expected if path.endswith(".tar") and changed[path] != expected[path]]
    assert len(tars) == 1


def test_other_files_are_left_alone(raw, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"there holds thesis\.txt, which is not a shard set"):
        run(raw, tmp_path)
    (tmp_path / "there/thesis.txt").unlink()
    run(raw, tmp_path)
    manifest = tmp_path / "there/val/manifest.json"
    manifest.write_text(manifest.read_text().replace('"coco"', '"ade20k"'))
    with pytest.raises(UsageError, match="holds a set built from ade20k"):
        run(raw, tmp_path)
    with pytest.raises(UsageError, match="nonsense://x: "):
        build("coco", raw, "nonsense://x", work=tmp_path / "work")


def test_a_set_behind_a_url_can_be_verified(raw, tmp_path):
    out, url = tmp_path / "out", f"memory://{tmp_path.name}/sets"
    build("coco", raw, out, shards=SHARDS, jobs=1, report=lambda _: None)
    files = fsspec.filesystem("memory")
    files.put(f"{out}/", f"{tmp_path.name}/sets/", recursive=True)
    lines: list[str] = []
    verify(url, runner=processes(1), report=lines.append)
    verify(f"{url}/val", sample=1, runner=processes(1), report=lines.append)
    assert lines[0] == f"{url}/val: 9 samples in {SHARDS} shards are sound (all bytes)"
    assert lines[-1] == f"{url}/val: 9 samples in {SHARDS} shards are sound (1 samples per shard)"
    (tar, *_) = sorted((out / "val").glob("*.tar"))
    flip(tar, 3000)
    files.put_file(str(tar), f"{tmp_path.name}/sets/val/{tar.name}")
    with pytest.raises(DataError, match=rf"the first: {url}/val/{tar.name}"):
        verify(url, runner=processes(1), report=lines.append)
    files.rm(f"{tmp_path.name}/sets/val/samples.parquet")
    with pytest.raises(DataError, match=r"samples.parquet: the file is missing"):
        verify(url, sample=1, runner=processes(1), report=lines.append)
    files.pipe(f"{tmp_path.name}/sets/val/manifest.json", b"{}")
    with pytest.raises(DataError, match=rf"^{url}/val/manifest.json: the manifest has schema None"):
        verify(f"{url}/", runner=processes(1))
    with pytest.raises(UsageError, match="--repair works on folders only"):
        verify(url, repair=True)
    with pytest.raises(UsageError, match="holds no finished shard set"):
        verify(f"{url}/nothing")
    assert str(tempfile.gettempdir()) not in "".join(lines)
