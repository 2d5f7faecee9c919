"""A build is a pure function of its input, whatever the processes, interruptions, and order."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xxhash

from shards.build import plan
from shards.build.build import build
from shards.files import sha256
from shards.format.index import SampleIndex, load_offsets
from shards.format.manifest import Manifest
from tests.shards.raw import SAMPLE, sky, write

KILLED = """
import os, signal, sys
from pathlib import Path
from shards.build.build import build
from shards.format.manifest import Manifest
from shards.sources.coco import CocoItem

loads, load = 0, CocoItem.load

def dying_load(item, doctor):
    global loads
    loads += 1
    if loads == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return load(item, doctor)

def dying_save(manifest, folder):
    os.kill(os.getpid(), signal.SIGKILL)

CocoItem.load = dying_load
if sys.argv[3] == "manifest":
    Manifest.save = dying_save
    CocoItem.load = load
build("coco", Path(sys.argv[1]), Path(sys.argv[2]), shards=4, jobs=1)
"""


def sleep_in_worker(plan):
    """Replace a build of a shard that takes long, and write the process id beside the shard."""
    plan.tar.with_suffix(".pid").write_text(str(os.getpid()))
    time.sleep(600)


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file below `folder`, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def quiet(root, out, **options):
    return build("coco", root, out, report=lambda line: None, **options)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    quiet(SAMPLE, out, shards=4, jobs=1)
    return out


def test_two_processes_make_the_same_bytes_as_one(reference, tmp_path):
    quiet(SAMPLE, tmp_path, shards=4, jobs=2)
    made = tree(tmp_path)
    assert made == tree(reference)
    # per split: shards, offsets, and receipts; manifest, samples, findings, and lock
    assert len(made) == 2 * (4 + 4 + 4 + 4)


@pytest.mark.parametrize("moment", ["7", "15", "manifest"])
def test_killed_and_run_again_is_the_same_and_redoes_no_finished_shard(reference, tmp_path, moment):
    command = [sys.executable, "-c", KILLED, SAMPLE, tmp_path, moment]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    receipts = tmp_path.glob("*/.build/*.json")
    finished = {path.parent.parent / f"{path.stem}.tar" for path in receipts}
    inodes = {tar: tar.stat().st_ino for tar in finished}
    assert finished
    assert (tmp_path / "train/manifest.json").exists() == (moment == "15")
    quiet(SAMPLE, tmp_path, shards=4, jobs=1)
    assert tree(tmp_path) == tree(reference)
    assert {tar: tar.stat().st_ino for tar in finished} == inodes


def test_workers_do_not_outlive_a_killed_build(tmp_path):
    write(tmp_path / "raw", [sky(f"{i}.png") for i in range(8)])
    script = tmp_path / "forever.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from shards.build import destination\n"
        "from shards.build.build import build\n"
        "from tests.shards.build.test_build import sleep_in_worker\n"
        "if __name__ == '__main__':\n"
        "    destination.write_shard = sleep_in_worker\n"
        "    build('coco', Path(sys.argv[1]), Path(sys.argv[2]), shards=2, jobs=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, script, tmp_path / "raw", tmp_path / "out"]
    parent = subprocess.Popen(command, env=environment)
    workers = []
    try:
        deadline = time.monotonic() + 60
        while len(workers) < 2 and time.monotonic() < deadline and parent.poll() is None:
            workers = [int(p.read_text() or 0) for p in (tmp_path / "out/val").glob("*.pid")]
            time.sleep(0.05)
        assert len(workers) == 2
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_finished_build_is_left_alone_until_an_input_changes(tmp_path):
    raw, out = write(tmp_path / "raw", [sky("a.png"), sky("b.png")]), tmp_path / "out"
    quiet(raw, out)
    inode = (out / "val/000000.tar").stat().st_ino
    lines = []
    again = build("coco", raw, out, report=lines.append)
    assert (out / "val/000000.tar").stat().st_ino == inode
    assert any("holds this build already" in line for line in lines)
    assert again["val"]["samples"] == 2

    before = tree(out)
    image = raw / "val2017/a.png"
    changed = bytearray(image.read_bytes())
    changed[-1] ^= 1  # keep the size and the mtime
    times = image.stat().st_atime_ns, image.stat().st_mtime_ns
    image.write_bytes(changed)
    os.utime(image, ns=times)
    quiet(raw, out)
    assert tree(out)["val/000000.tar"] != before["val/000000.tar"]
    changed[-1] ^= 1
    image.write_bytes(changed)
    quiet(raw, out)
    assert tree(out) == before


def test_a_damaged_shard_is_made_again(tmp_path):
    raw, out = write(tmp_path / "raw", [sky("a.png")]), tmp_path / "out"
    quiet(raw, out)
    before = tree(out)
    (out / "val/000000.tar").write_bytes(b"short")
    (out / "val/manifest.json").write_text("{")
    quiet(raw, out)
    assert tree(out) == before


def test_fewer_shards_leave_none_behind(tmp_path):
    raw, out = write(tmp_path / "raw", [sky(f"{i}.png") for i in range(6)]), tmp_path / "out"
    quiet(raw, out, shards=4, jobs=1)
    quiet(raw, out, shards=2, jobs=1)
    assert sorted(path.name for path in (out / "val").glob("*.tar*")) == [
        *("000000.tar", "000000.tar.idx", "000001.tar", "000001.tar.idx")
    ]


def test_shards_follow_from_keys_and_size(reference, tmp_path, monkeypatch):
    index = SampleIndex.load(reference / "train")
    expected = [xxhash.xxh3_64_intdigest(key.encode()) % 4 for key in index.key]
    assert index.shard.tolist() == expected
    rows = list(zip(index.shard.tolist(), index.key, strict=True))
    assert rows == sorted(rows)

    raw = [SAMPLE / "train2017", SAMPLE / "annotations/panoptic_train2017"]
    size = sum(path.stat().st_size for folder in raw for path in folder.iterdir())
    for limit, shards in ((size, 1), (size - 1, 2), (size // 3, 4), (size // 8 - 1, 16)):
        monkeypatch.setattr(plan, "SHARD_BYTES", limit)
        assert quiet(SAMPLE, tmp_path, splits=["train"], jobs=1)["train"]["shards"] == shards


def test_ten_more_images_rewrite_only_their_shards(tmp_path):
    images = [sky(f"{i:02}.png") for i in range(40)]
    raw, out = write(tmp_path / "raw", images[:-10]), tmp_path / "out"
    quiet(raw, out, shards=32, jobs=1)
    before = Manifest.load(out / "val")
    files = {path: path.stat() for path in (out / "val").rglob("0*") if path.suffix != ".idx"}
    made = {path: sha256(path) for path in files}
    for path in raw.glob("annotations/*.json"):
        path.unlink()
    write(tmp_path / "more", images)
    for path in (path for path in (tmp_path / "more").rglob("*") if path.is_file()):
        there = raw / path.relative_to(tmp_path / "more")
        if not there.exists():
            shutil.copy(path, there)
    quiet(raw, out, shards=32, jobs=1)
    concerned = {xxhash.xxh3_64_intdigest(b"%d" % i) % 32 for i in range(30, 40)}
    assert len(concerned) < 12
    for path, stat in files.items():
        same = (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
        assert same == (sha256(path) == made[path]) == (int(path.stem) not in concerned)
    after = Manifest.load(out / "val")
    assert before.fingerprint != after.fingerprint
    assert after.samples == before.samples + 10
    quiet(raw, tmp_path / "clean", shards=32, jobs=1)
    assert tree(out) == tree(tmp_path / "clean")


def test_limit_keeps_the_first_keys(tmp_path):
    raw = write(tmp_path / "raw", [sky(f"{name}.png") for name in "cab"])
    assert quiet(raw, tmp_path / "out", limit=2)["val"]["samples"] == 2
    assert SampleIndex.load(tmp_path / "out/val").key == ["a", "b"]


def test_the_index_is_true_of_the_bytes(reference):
    for split in ("train", "val"):
        folder = reference / split
        manifest, index = Manifest.load(folder), SampleIndex.load(folder)
        assert len(index) == manifest.samples == sum(shard.samples for shard in manifest.shards)
        for number, shard in enumerate(manifest.shards):
            blob = (folder / shard.name).read_bytes()
            assert (len(blob), sha256(folder / shard.name)) == (shard.bytes, shard.sha256)
            rows = [i for i in range(len(index)) if index.shard[i] == number]
            offsets = load_offsets(folder / shard.name)
            assert offsets.tolist() == [
                *index.offset[rows].tolist(),
                sum(index.length[rows].tolist()),
            ]
            assert not any(blob[int(offsets[-1]) :])
            for i in rows:
                start, length = int(index.offset[i]), int(index.length[i])
                sample = blob[start : start + length]
                assert sample.startswith(f"{index.key[i]}.".encode())
                assert xxhash.xxh3_64_intdigest(sample) == index.xxh3[i]
