"""`predict` on 500 images with ten bad ones of ten kinds: killed three times, it does each once."""

import io
import json
import os
import re
import shlex
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import config as configs
from jobs.outputs import MARK
from shards.build.build import build
from tests.jobs import small
from tests.jobs.test_predict_files import header_of_png
from tests.shards.raw import SAMPLE

COUNT, KILLS = 490, (60, 180, 330)  # good images, and the numbers of results at which it is killed
DOCUMENT = small.ROOT / "docs/predict.md"


def encoded(number: int, kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """Return a small image in the bytes of a format."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def write_images(folder: Path) -> list[str]:
    """Write the images, and return the names of the bad ones."""
    photo, png = encoded(0), encoded(0, "PNG")
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    good = {f"{n % 7}/{n:03}.jpg": encoded(n) for n in range(COUNT - 5)}
    good |= {"cmyk.jpg": encoded(1, mode="CMYK"), "gray16.png": encoded(2, "PNG", "I;16")}
    good |= {"png-inside.jpg": png, "palette.png": encoded(3, "PNG", "P")}
    good["animated.webp"] = encoded(4, "WEBP", save_all=True, append_images=frames)
    bad = {
        "empty.jpg": b"",
        "truncated.jpg": photo[: len(photo) // 2],
        "text.jpg": b"these are notes",
        "zero-size.png": header_of_png(0, 10),
        "bomb.png": header_of_png(100_000, 100_000),
        "document.png": b"%PDF-1.7\n1 0 obj",
        "flipped.png": png[:60] + struct.pack(">I", 7) + png[64:],
    }
    for name, content in (good | bad).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "unreadable.jpg").write_bytes(photo)
    (folder / "unreadable.jpg").chmod(0)
    if os.access(folder / "unreadable.jpg", os.R_OK):  # the superuser may read everything
        (folder / "unreadable.jpg").unlink()
        os.mkfifo(folder / "unreadable.jpg")
    return sorted([*bad, "folder.jpg", "dangling.jpg", "unreadable.jpg"])


def version(path: Path) -> tuple[int, int]:
    """Return what changes if a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def records(out: Path) -> list[Path]:
    return [path for path in (out / "records").rglob("*.json") if path.is_file()]


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    small.untrained(folder, photographs)
    return folder


@pytest.mark.slow
def test_500_images_are_done_once_though_it_is_killed_three_times(work):
    bad = write_images(work / "photos")
    command = ["predict", small.NAME, "photos", "--out", "out"]
    done: dict[Path, tuple[int, int]] = {}
    for kill_at in KILLS:
        process = small.start(work, *command)
        while len(records(work / "out")) < kill_at and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not json.loads((work / "out" / MARK).read_text())["complete"]
        for record in records(work / "out"):
            id = record.relative_to(work / "out/records").with_suffix("")
            picture = work / "out" / f"{id}.png"
            done |= {record: version(record), picture: version(picture)}
    outcome = small.finish(small.start(work, *command))
    assert outcome.code == 3
    assert COUNT > len(done) / 2 >= KILLS[-1]
    assert all(version(path) == written for path, written in done.items()), (
        "an image was done twice"
    )
    summary = json.loads((work / "out/summary.json").read_text())
    assert summary["images"] == len(records(work / "out")) == COUNT
    assert sorted(row["file"] for row in summary["left_out"]) == bad
    assert all(row["reason"] for row in summary["left_out"])
    for name in bad:
        assert f"left out: {name}: " in outcome.out
    assert f"{len(done) // 2} of {COUNT + 9} images are already done" in outcome.out
    for name in ("panoptic.json", "instances.json"):
        document = json.loads((work / "out" / name).read_text())
        entries = document["annotations"] if name == "panoptic.json" else document
        assert len({entry["image_id"] for entry in entries}) == COUNT


def test_only_what_changed_is_done_again(work, tmp_path):
    shots = tmp_path / "shots"
    shots.mkdir()
    for n in range(3):
        (shots / f"{n}.jpg").write_bytes(encoded(n))
    run = str(work / "runs" / small.NAME)
    command = ["predict", run, "shots", "--out", "out"]

    def call(*more):
        outcome = small.call(tmp_path, *command, *more)
        assert outcome.code == 0, outcome.err
        return outcome.out.partition(" are already done")[0].strip()

    call()
    before = {path.stem: version(path) for path in records(tmp_path / "out")}
    assert call() == "3 of 3 images"
    (shots / "1.jpg").write_bytes(encoded(9, quality=50))
    (shots / "2.jpg").rename(shots / "3.jpg")
    assert call() == "1 of 3 images"
    after = {path.stem: version(path) for path in records(tmp_path / "out")}
    assert after.keys() == {"0", "1", "3"}
    assert after["0"] == before["0"]
    assert not (tmp_path / "out/2.png").exists()
    (tmp_path / "out/records/0.json").write_text("{")  # as after a loss of power
    assert "would replace what predict did not write" in small.call(tmp_path, *command).err
    assert "already done" not in call("--threshold", "0.5", "--out", "other")
    assert "already done" not in call("--task", "semantic", "--out", "other")
    names = {path.relative_to(tmp_path / "other").parts[0]
             for path in (tmp_path / "other").rglob("*") if path.is_file()}  # fmt: skip
    assert "semantic" in names
    assert not names & {"panoptic", "panoptic.json", "instances.json"}


def test_the_commands_of_the_page_run(work, tmp_path):
    """Every command of docs/predict.md, in a folder with what it names."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(work / "runs" / small.NAME)
    for n, name in enumerate(("photo.jpg", "photos/a.jpg", "photos/more/b.png", "large.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(n, "PNG" if name.endswith("png") else "JPEG"))
    build("coco", SAMPLE, tmp_path / "SHARDS", jobs=1, shards=1, report=lambda _: None)
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(lines) > 3
    for line in lines:
        program, *command = shlex.split(line, comments=True)
        assert program == "./launch.sh"
        outcome = small.call(tmp_path, *command)
        assert outcome.code == 0, (line, outcome.err)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(configs, "RUNS", Path("runs"))
        exec(compile(code, "docs/predict.md", "exec"), {})
    Image.open(tmp_path / "overlay.png").verify()
