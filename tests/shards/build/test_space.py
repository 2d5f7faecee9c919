"""Disks that are too small: an error before the start, and a resumable build when one fills up."""

import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from shards.build.build import build
from shards.files import sha256
from tests.jobs import small
from tests.shards.build.test_build import tree
from tests.shards.raw import sky, write

SHARDS = 8
FILLING = f"""
import json, subprocess, sys
from pathlib import Path
from shards.build import build as module
from shards.errors import Failed
from tests.shards.build.test_build import tree

raw, out = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", out], check=True)
module.check_space = lambda *_: None  # it would refuse to start
lines, full = [], None
try:
    module.build("coco", raw, out, shards={SHARDS}, jobs=1, report=lines.append)
except Failed as error:
    full = str(error)
left = tree(out)
receipts = {{path.name: json.loads(path.read_text()) for path in out.glob("val/.build/*.json")}}
subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
module.build("coco", raw, out, shards={SHARDS}, jobs=1, report=lines.append)
print(json.dumps([full, left, receipts, tree(out)]))
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A raw data set of more than 1 MiB."""
    images = [sky(f"{n}.png", (128, 96)) for n in range(40)]
    return write(tmp_path_factory.mktemp("space") / "raw", images)


def test_too_little_room_is_an_error_before_the_start(raw, tmp_path, monkeypatch):
    images = sum(path.stat().st_size for path in raw.glob("val2017/*"))
    usage = namedtuple("usage", "total used free")
    room = iter([images, 2 * images, 0])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, next(room)))
    command = ["build", "coco", "--jobs", "1", "--root", str(raw), "--out", "out"]
    outcome = small.call(tmp_path, *command)
    assert outcome.code == 1
    pattern = r"^error: out: the missing shards take about (\S+) GiB and 0\.00 GiB are free; free"
    assert float(re.search(pattern, small.complaint(outcome))[1]) < 2 * images / 2**30 + 0.005
    assert not list(tmp_path.rglob("*.tar"))
    assert small.call(tmp_path, *command).code == 0
    assert small.call(tmp_path, *command).code == 0  # nothing is left to build


def test_the_estimate_is_near_the_truth_and_rather_above(raw, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "shards.build.build.check_space",
        lambda _, needed: asked.append(needed),
    )
    for name, data, most in (("tiny", raw, 1.25), ("photographs", small.SAMPLE, 1.05)):
        made = build("coco", data, tmp_path / name, jobs=1, report=lambda _: None)
        assert 0.97 < asked.pop() / sum(one["bytes"] for one in made.values()) < most


def test_a_disk_that_fills_up_leaves_whole_shards_and_the_next_run_resumes(raw, tmp_path):
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "none", tmp_path]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mount")
    (tmp_path / "out").mkdir()
    command = ["unshare", "-m", sys.executable, "-c", FILLING, raw, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, cwd=small.ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()
    full, left, receipts, whole = json.loads(done.stdout)
    assert full.endswith("out: the disk is full; free space and run the same command to resume")
    tars = {path.split("/")[-1][:6]: made for path, made in left.items() if path.endswith(".tar")}
    assert 0 < len(tars) < SHARDS
    assert {name[:6]: receipt["shard"]["sha256"] for name, receipt in receipts.items()} == tars
    assert not [path for path in left if ".tmp-" in path or "manifest" in path]
    build("coco", raw, tmp_path / "undisturbed", shards=SHARDS, jobs=1, report=lambda _: None)
    assert whole == tree(tmp_path / "undisturbed")
    assert all(left[path] == whole[path] for path in left if path.endswith(".tar"))
    assert sha256(tmp_path / "undisturbed/val/manifest.json") == whole["val/manifest.json"]
