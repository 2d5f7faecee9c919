"""`predict` on what folders hold in daily life: damaged, odd, hidden, and equally named files."""

import json
import os
import shutil
import signal
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from jobs import segmenter
from jobs.outputs import MARK
from jobs.predict.inputs import find_images
from shards.errors import UsageError
from tests.jobs import small
from tests.shards.raw import SAMPLE

PHOTO = min((SAMPLE / "val2017").glob("*.jpg")).read_bytes()


def header_of_png(width, height):
    """Return a PNG that declares a size and holds few pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IEND", b"")]
    parts.insert(1, (b"IDAT", zlib.compress(bytes(1000))))
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png(*shape, dtype: type = np.uint8):
    return cv2.imencode(".png", np.full(shape, 99, dtype))[1].tobytes()


DAMAGED = {
    "truncated.jpg": PHOTO[: len(PHOTO) // 2],
    "empty.jpg": b"",
    "text.png": b"not an image",
    "sub/bomb.png": header_of_png(30000, 30000),
    "wide.png": header_of_png(2_000_000, 10),
}
GOOD = {
    "a.jpg": PHOTO,
    "sub/a.jpg": PHOTO,
    "new/sub/a.jpg": PHOTO,
    "twice.jpg": PHOTO,
    "twice.png": png(20, 30, 3),
    "directory.jpg/inside.JPG": PHOTO,
    "thin.png": png(1, 5000, 3),
    "tall.png": png(5000, 1, 3),
    "dot.png": png(1, 1, 3),
    "16bit.png": png(20, 30, dtype=np.uint16),
    "alpha.png": png(20, 30, 4),
    "x" * 250 + ".jpeg": PHOTO,
    "back\\slash.jpg": PHOTO,
}
HIDDEN = {"._a.jpg": b"\0\5\26\7", "sub/.b.png": PHOTO}
OTHER = {"Thumbs.db": b"x", ".DS_Store": b"x", "__MACOSX/a.jpg": b"x", ".trash/a.jpg": PHOTO}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def work(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    small.untrained(folder, photographs)
    return folder


@pytest.fixture(scope="module")
def odd(work):
    """The outcome for a folder with everything, and its summary."""
    folder = write(work / "odd", DAMAGED | GOOD | HIDDEN | OTHER)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "sub/loop").symlink_to("..")
    (folder / os.fsdecode(b"\xff\x1b[31m.jpg")).write_bytes(b"damaged")
    outcome = small.call(work, "predict", small.NAME, "odd", "--out", "out")
    return outcome, json.loads((work / "out/summary.json").read_text())


def stem(name):
    return {"twice.jpg": "twice.jpg", "twice.png": "twice.png"}.get(name, name.rpartition(".")[0])


def test_damaged_files_are_listed_and_the_rest_is_done(work, odd):
    outcome, summary = odd
    assert outcome.code == 3
    left_out = {row["file"]: row["reason"] for row in summary["left_out"]}
    unusual = {"pipe.jpg", "gone.jpg", "\udcff\x1b[31m.jpg"}
    assert left_out.keys() == DAMAGED.keys() | unusual
    assert all(left_out.values())
    for name in DAMAGED:
        assert f"left out: {name}: {left_out[name]}" in outcome.out
    (error,) = outcome.err.splitlines()[-1:]
    assert f"summary.json: {len(left_out)} of the inputs (" in error
    assert f"were left out, and {len(GOOD)} images are done" in error
    assert summary["ignored"] == list(HIDDEN)
    assert summary["images"] == len(GOOD)
    document = json.loads((work / "out/panoptic.json").read_text())
    assert {image["file_name"]: image["id"] for image in document["images"]} == {
        name: stem(name) for name in GOOD
    }
    for image in document["images"]:
        ids = Image.open(work / "out/panoptic" / f"{image['id']}.png")
        assert ids.size == (image["width"], image["height"])
        Image.open(work / "out" / f"{image['id']}.png").verify()


def test_names_from_the_disk_are_escaped_in_the_terminal(odd):
    outcome, _ = odd
    assert "\x1b" not in outcome.out + outcome.err
    assert r"left out: \udcff\x1b[31m.jpg: " in outcome.out


def test_the_marked_folder_is_recognized_and_rewritten(work, odd):
    whole = {p for p in (work / "out").rglob("*") if p.is_file()}
    assert json.loads((work / "out" / MARK).read_text())["complete"]
    assert small.call(work, "predict", small.NAME, "odd", "--out", "out").code == 3
    assert {p for p in (work / "out").rglob("*") if p.is_file()} == whole


@pytest.mark.parametrize("out", [".", "../shots", "link", "panoptic"])
def test_photographs_are_never_written_over(work, tmp_path, out):
    shots = write(tmp_path / "shots", {"a.png": PHOTO, "panoptic/a.png": png(4, 4)})
    write(shots, {"panoptic.json": b"{}", "instances.json": b"[]"})
    (shots / "link").symlink_to(".")
    before = {path: path.read_bytes() for path in shots.rglob("*.*") if path.is_file()}
    run = str(work / "runs" / small.NAME)
    outcome = small.call(shots, "predict", run, "a.png", "--out", out)
    assert outcome.code == 2
    assert f"--out {out}: " in small.complaint(outcome)
    assert {p: p.read_bytes() for p in shots.rglob("*.*") if p.is_file()} == before


def test_results_below_the_photographs_are_not_predicted_again(work, tmp_path):
    shots = write(tmp_path / "shots", {"a.jpg": PHOTO})
    run = str(work / "runs" / small.NAME)
    for _ in range(2):
        outcome = small.call(tmp_path, "predict", run, "shots", "--out", "shots/out")
        assert outcome.code == 0, outcome.err
        assert outcome.out.splitlines()[-1].startswith("1 images, ")
    outcome = small.call(tmp_path, "predict", run, "shots/out", "--out", "second")
    assert outcome.code == 2
    assert "shots/out: holds the results of predict" in small.complaint(outcome)
    assert not (tmp_path / "second").exists()
    assert {path.name for path in shots.iterdir()} == {"a.jpg", "out"}


def test_interrupted_results_are_not_taken_for_whole(work, tmp_path, monkeypatch):
    shots = write(tmp_path / "shots", {"a.jpg": PHOTO, "b.jpg": PHOTO})
    command = ["predict", str(work / "runs" / small.NAME), str(shots), "--out", "out"]
    assert small.call(tmp_path, *command).code == 0
    whole = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    shutil.rmtree(tmp_path / "out")

    draw = segmenter.overlay

    def stop(*given):
        if (tmp_path / "out/a.png").exists():
            signal.raise_signal(signal.SIGINT)
        return draw(*given)

    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "overlay", stop)
        assert small.call(tmp_path, *command).code == 130
    assert not json.loads((tmp_path / "out" / MARK).read_text())["complete"]
    done = ["a.png", "panoptic/a.png", "records/a.json", "thumbnails/a.jpg"]
    kept = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    assert set((tmp_path / "out").rglob("*.*")) == {
        tmp_path / "out" / name for name in [MARK, *done]
    }
    outcome = small.call(tmp_path, *command)
    assert outcome.code == 0
    assert "1 of 2 images are already done" in outcome.out
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == whole
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == kept


def test_instances_have_names_pixels_and_a_score(work, odd):
    entries = json.loads((work / "out/instances.json").read_text())
    assert entries
    assert all(entry["score"] > 0 and min(entry["bbox"][2:]) > 0 for entry in entries)
    categories = json.loads((work / "out/panoptic.json").read_text())["categories"]
    names = {category["id"]: category["name"] for category in categories}
    assert all(entry["category_name"] == names[entry["category_id"]] for entry in entries)
    least = sorted(entry["score"] for entry in entries)[len(entries) // 2]
    words = ["predict", small.NAME, "odd/a.jpg", "--out", "some", "--threshold", str(least)]
    assert small.call(work, *words).code == 0
    some = json.loads((work / "some/instances.json").read_text())
    wanted = [e for e in entries if e["image_id"] == "a" and e["score"] >= least]
    assert 0 < len(some) <= len(wanted) < len(entries)


def test_the_score_that_would_have_passed_is_named(work):
    words = ["predict", small.NAME, "odd/a.jpg", "--out", "none", "--threshold"]
    outcome = small.call(work, *words, "0.999")
    assert outcome.code == 0, outcome.err
    assert "1 of 1 images have no segment: the highest score is 0." in outcome.out
    suggested = outcome.out.partition("a threshold of ")[2].split()[0]
    assert "1 images, 1 segments: none" in small.call(work, *words, suggested).out


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["a/x.jpg", "b/x.jpg"], ["a/x", "b/x"]),
        (["a", "b"], ["a/x", "b/x"]),
        (["a"], ["x"]),
        (["a/x.jpg"], ["x"]),
        (["a/x.jpg", "a", "b/../a/x.jpg"], ["x"]),
        (["deep"], ["1/x", "2/y"]),
        (["c"], ["x", "y.jpg", "y.png", "y.png.jpg"]),
        (["d"], ["d/panoptic/x", "d/x"]),
        (["d/panoptic"], ["x"]),
    ],
)
def test_ids_are_relative_paths(tmp_path, monkeypatch, given, ids):
    names = ["a/x.jpg", "b/x.jpg", "deep/1/x.jpg", "deep/2/y.jpg", "d/x.jpg", "d/panoptic/x.png"]
    names += [f"c/{name}" for name in ("x.jpg", "y.jpg", "y.png", "y.png.jpg")]
    write(tmp_path, dict.fromkeys(names, b""))
    monkeypatch.chdir(tmp_path)
    found = find_images(given)
    assert sorted(found.sources) == ids


def test_paths_without_an_image_are_refused(tmp_path):
    write(tmp_path, {"notes/a.txt": b"x", "hidden/._a.jpg": b"x"})
    for name, reason in {
        "notes": "holds no image",
        "hidden": "holds no image",
        "*.png": "matches no file or folder",
        "notes*": "match no image",
        "nowhere": "does not exist",
    }.items():
        with pytest.raises(UsageError, match=reason):
            find_images([str(tmp_path / name)])


def test_tiles_change_only_images_that_exceed_them(work, odd):
    """The photograph has 640x480 pixels: in one tile of 640, the results are those without."""
    command = ["predict", small.NAME, "odd/a.jpg", "--task", "panoptic", "--task", "instance"]
    command += ["--task", "semantic", "--out"]
    for out, *tiles in (("whole",), ("one", "--tile", "640"), ("many", "--tile", "256")):
        outcome = small.call(work, *command, out, *tiles)
        assert outcome.code == 0, outcome.err
    names = ["a.png", "panoptic/a.png", "panoptic.json", "semantic/a.png", "instances.json"]
    whole, one, many = (
        [(work / out / name).read_bytes() for name in names] for out in ("whole", "one", "many")
    )
    assert whole == one
    assert all(a != b for a, b in zip(whole, many, strict=True))
    panoptic = np.asarray(Image.open(work / "many/panoptic/a.png"), np.int64) @ [1, 256, 65536]
    (entry,) = json.loads(many[2])["annotations"]
    numbers, areas = np.unique(panoptic[panoptic > 0], return_counts=True)
    assert {s["id"]: s["area"] for s in entry["segments_info"]} == dict(
        zip(numbers.tolist(), areas.tolist(), strict=True)
    )
    for instance in json.loads(many[4]):
        assert rle.decode(instance["segmentation"]).shape == panoptic.shape
    outcome = small.call(work, *command, "bad", "--tile", "256", "--tile-overlap", "100")
    assert outcome.code == 2
    assert "--tile-overlap 100: the overlap of tiles of 256 pixels must be 1 to 85" in outcome.err
