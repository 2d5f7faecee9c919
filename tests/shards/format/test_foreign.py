"""Tars of stock webdataset, read in place: their samples equal those of `build folder`."""

import errno
import gzip
import io
import os
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from webdataset import ShardWriter

from jobs.__main__ import app
from pipeline.data.split import BatchSplit
from pipeline.data.store import Store
from pipeline.data.stream import DataSettings, train_stream
from shards.build.index_tars import index_tars
from shards.errors import DataError, Failed, UsageError
from shards.format.manifest import Foreign, Manifest
from shards.format.schema import TASKS
from shards.inspect import ShardSet, load, overview
from shards.parallel import processes
from shards.verify import verify
from tests.damage import flip
from tests.shards import raw_folder
from tests.shards.raw_maps import findings, made, pixels, samples, save, write

NAMES = [f"train{n}" for n in range(6)]
MAPS = {"labels": "labels.png", "instances": "things.png"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(raw_folder, tmp_path_factory.mktemp("raw"), train=len(NAMES))


def tars(raw: Path, out: Path, names: list[str] = NAMES, maps: dict[str, str] = MAPS) -> Path:
    """Write tars as users do, two samples in each, and the list of classes."""
    out.mkdir(exist_ok=True)
    (out / "classes.yaml").write_bytes((raw / "classes.yaml").read_bytes())
    with ShardWriter(f"{out}/plates-%04d.tar", maxcount=2, verbose=0) as writer:
        for name in names:
            paths = dict(zip(MAPS, raw_folder.maps(raw, "train", name), strict=True))
            writer.write({
                "__key__": f"plate_1/{name}",
                "webp.png": raw_folder.image(raw, "train", name).read_bytes(),
                "txt": name,
                **{ext: paths[kind].read_bytes() for kind, ext in maps.items()},
            })  # fmt: skip
    return out


def indexed(folder: Path, **options: str | None) -> list[str]:
    """Index the tars of a folder; return the lines of the report."""
    report: list[str] = []
    options = {"image": "webp.png", "labels": "labels.png", "instances": "things.png"} | options
    index_tars(folder, folder / "classes.yaml", report=report.append, **options)
    return report


@pytest.fixture(scope="module")
def third_party(raw, tmp_path_factory):
    folder = tars(raw, tmp_path_factory.mktemp("tars"))
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    report = indexed(folder)
    assert report[-1].endswith(
        "6 samples in 3 tars are readable in place for the tasks panoptic, instance, semantic"
    )
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    return folder


def test_stock_tars_have_pax_headers(third_party):
    """Shards of `build` have none, so that these tars test the other path."""
    with tarfile.open(next(third_party.glob("*.tar"))) as archive:
        assert next(iter(archive)).pax_headers


def test_samples_equal_those_of_build_folder(raw, third_party, tmp_path):
    made(raw_folder, raw, tmp_path / "out")
    built = samples(tmp_path / "out/train")
    store = Store(third_party)
    assert sorted(store.index.key) == [f"plate_1/{name}" for name in NAMES]
    for number, key in enumerate(store.index.key):
        sample, expected = store.load(number), built[key.replace("plate_1", "plate.1")]
        for name in ("segments_map", "semantic"):
            assert np.array_equal(getattr(sample, name), getattr(expected, name))
            assert getattr(sample, name).dtype == getattr(expected, name).dtype
        assert sample.layers is expected.layers is None
        for name in ("image", "segments", "width", "height", "rights"):
            assert getattr(sample, name) == getattr(expected, name)
        assert store.index.segments[number] == len(sample.segments) > 0
        assert "licence" in sample.rights


@pytest.mark.parametrize("task", TASKS)
def test_their_stream_equals_that_of_built_shards(raw, third_party, tmp_path, task):
    made(raw_folder, raw, tmp_path / "out")
    seen = [crops(folder, task) for folder in (third_party, tmp_path / "out/train")]
    assert len(seen[0]) == len(NAMES)
    assert seen[0] == seen[1]


def crops(folder: Path, task: str) -> dict[str, list]:
    """Return an epoch of the stream without random augmentation, by the name of the image."""
    settings = DataSettings(crop=64, augment="none")
    stream = train_stream(settings, [Store(folder)], task, 0, 0, BatchSplit(1, 1))
    return {
        Path(batch.keys[0]).name: [part.tolist() for part in (batch.images, *batch.targets)]
        for batch in islice(stream, len(NAMES))
    }


def test_labels_alone_serve_the_semantic_task(raw, tmp_path):
    folder = tars(raw, tmp_path / "tars", maps={"labels": "png"})
    for tar in folder.glob("*.tar"):
        renamed(tar, "webp.png", "jpeg")
    index_tars(folder, folder / "classes.yaml", report=lambda line: None)  # no options are needed
    manifest = Manifest.load(folder)
    assert manifest.tasks == ("semantic",)
    assert manifest.foreign == Foreign("jpeg", "png", None, (255,))
    assert Store(folder).load(0).segments is None
    expected = np.stack([
        np.bincount(Store(folder).load(n).semantic.ravel(), minlength=5)[1:] > 0
        for n in range(len(NAMES))
    ])  # fmt: skip
    assert np.array_equal(overview(folder, processes(1)).tally.images, expected.sum(0))


def renamed(tar: Path, old: str, new: str) -> None:
    """Give members another extension, and write the tar in GNU format with a folder entry."""
    with tarfile.open(tar) as archive:
        contents = [(m.name, archive.extractfile(m).read()) for m in archive]
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, payload in contents:
            member = tarfile.TarInfo("./" + name.replace(old, new))
            member.size = len(payload)
            archive.addfile(member, io.BytesIO(payload))


def test_verify_and_inspect_read_them(raw, third_party, tmp_path):
    made(raw_folder, raw, tmp_path / "out")
    tallies = [overview(f, processes(1)).tally for f in (third_party, tmp_path / "out/train")]
    for name in ("images", "segments", "pixels"):
        assert np.array_equal(*(getattr(tally, name) for tally in tallies))
    assert sorted(tallies[0].areas) == sorted(tallies[1].areas)
    image, sample = load(ShardSet.load(third_party), 0)
    assert image.shape[:2] == sample.semantic.shape
    report: list[str] = []
    verify(third_party, runner=processes(1), report=report.append)
    verify(third_party, sample=1, runner=processes(1), report=report.append)
    assert report == [
        f"{third_party}: 6 samples in 3 shards are sound ({extent})"
        for extent in ("all bytes", "1 samples per shard")
    ]


def test_damage_after_indexing_is_found(raw, tmp_path):
    folder = tars(raw, tmp_path / "tars")
    indexed(folder)
    store = Store(folder)
    flip(folder / "plates-0001.tar", int(store.index.offset[3]) + 3000)
    with pytest.raises(DataError, match=r"plates-0001.tar: sample plate_1/train3 is damaged"):
        store.load(3)
    report: list[str] = []
    with pytest.raises(DataError, match=r"2 problems; the first: .*plates-0001\.tar"):
        verify(folder, runner=processes(1), report=report.append)
    (folder / "samples.parquet").unlink()
    with pytest.raises(DataError, match="is missing; index the folder again"):
        verify(folder, repair=True, runner=processes(1), report=report.append)


def test_unsound_samples_are_left_out_and_listed(raw, tmp_path):
    broken = tmp_path / "raw"
    write(raw_folder, broken, train=8)
    labels, _ = raw_folder.maps(broken, "train", "train1")
    save(labels, np.where(pixels(labels) == 300, 9, pixels(labels)).astype(np.uint16))
    save(raw_folder.maps(broken, "train", "train2")[1], np.zeros((7, 7), np.uint16))
    raw_folder.image(broken, "train", "train3").write_bytes(b"no image")
    raw_folder.maps(broken, "train", "train4")[1].write_bytes(b"no map")
    folder = tars(broken, tmp_path / "tars", [f"train{n}" for n in range(8)])
    with tarfile.open(folder / "copies.tar", "w") as archive:
        for path in (raw_folder.image(broken, "train", "train7"),):
            archive.add(path, "plate_1/train6.webp.png")
            archive.add(raw_folder.maps(broken, "train", "train7")[0], "plate_1/train6.labels.png")
            archive.add(raw_folder.maps(broken, "train", "train7")[1], "plate_1/train6.things.png")
            archive.add(path, "lonely.webp.png")
    report = indexed(folder)
    assert findings(folder) == [
        ("copies.tar/lonely", 8),
        ("plates-0000.tar/plate_1/train1", 14),
        ("plates-0001.tar/plate_1/train2", 9),
        ("plates-0001.tar/plate_1/train3", 1),
        ("plates-0002.tar/plate_1/train4", 8),
    ]
    both = [f"{tar}/plate_1/train6" for tar in ("copies", "plates-0003")]
    own = [f"plate_1/train{n}" for n in (0, 5, 7)]
    assert sorted(Store(folder).index.key) == sorted([*both, *own])
    assert sum(Store(folder).shard_sizes) == Manifest.load(folder).samples == 5
    assert "2 samples have keys of several tars; they are named TAR/KEY" in report
    verify(folder, runner=processes(1), report=report.append)


def member(name: str, **fields) -> bytes:
    """Return the bytes of a tar with one member of that name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        archive.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no tar" * 200, "not an uncompressed tar file"),
        (gzip.compress(member("a.jpg")), "not an uncompressed tar file"),
    ],
    ids=["text", "compressed"],  # all processes have to give the tests the same names
)
def test_damaged_tars_are_rejected(raw, tmp_path, content, message):
    folder = tars(raw, tmp_path / "tars", NAMES[:2])
    (folder / "z.tar").write_bytes(content)
    with pytest.raises(DataError, match=message):
        indexed(folder)
    assert not (folder / "manifest.json").exists()


def test_a_truncated_tar_or_a_damaged_header_is_rejected(raw, tmp_path):
    folder = tars(raw, tmp_path / "tars", NAMES[:2])
    (tar,) = folder.glob("*.tar")
    whole = tar.read_bytes()
    with tarfile.open(tar) as archive:
        last = list(archive)[-1]
    tar.write_bytes(whole[: last.offset_data + 100])
    with pytest.raises(DataError, match="not an uncompressed tar file"):
        indexed(folder)
    tar.write_bytes(whole)
    flip(tar, last.offset + 100)  # a byte of the mode, which the checksum covers
    with pytest.raises(DataError, match=f"damaged tar header at byte {last.offset}"):
        indexed(folder)


def test_missing_or_ambiguous_members_are_rejected(raw, tmp_path):
    folder = tars(raw, tmp_path / "tars", NAMES[:1])
    for options, message in (
        ({"labels": "seg.png"}, "--labels seg.png is missing"),
        ({"labels": "txt"}, r"--labels txt is missing or of another kind \(png\)"),
        ({"image": None}, "choose one with --image EXTENSION"),
        (
            {"labels": None, "instances": None, "image": "webp.png"},
            "choose one with --labels EXTENSION",
        ),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            indexed(folder, **options)
        assert "the first sample has the members labels.png, things.png, txt, webp.png" in str(
            caught.value
        )


def test_the_command(raw, tmp_path):
    folder = tars(raw, tmp_path / "tars")
    members = ["--image", "webp.png", "--labels", "labels.png", "--instances", "things.png"]
    result = CliRunner().invoke(app, ["index", str(folder), *members])
    assert result.exit_code == 0, result.output
    assert "6 samples in 3 tars" in result.output
    (folder / "classes.yaml").unlink()
    for arguments, error in (
        ([str(folder), *members], DataError),
        ([str(tmp_path / "none")], UsageError),
    ):
        assert isinstance(CliRunner().invoke(app, ["index", *arguments]).exception, error)
    made(raw_folder, raw, tmp_path / "out")
    with pytest.raises(UsageError, match="a shard set that build made"):
        index_tars(tmp_path / "out/train", tmp_path / "none.yaml")


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, Failed), (errno.EROFS, UsageError)])
def test_a_failed_write_leaves_no_set(raw, tmp_path, monkeypatch, code, error):
    folder = tars(raw, tmp_path / "tars")
    indexed(folder)

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("shards.build.index_tars.save_rows", fail)
    with pytest.raises(error, match=f"{folder}: .* and run the same command"):
        indexed(folder)
    with pytest.raises(UsageError, match="not a shard set"):
        Manifest.load(folder)
