"""`index` reads the tars that stock webdataset reads, and lists what it leaves out."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.data.store import Store
from shards.build.index_tars import index_tars
from shards.errors import UsageError
from shards.inspect import ShardSet, load
from shards.parallel import processes
from shards.verify import verify
from tests.shards.raw_maps import findings

CLASSES = "classes: [{id: 0, name: ground}, {id: 1, name: cell, isthing: true}]\n"


def jpg(shade: int = 9) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 20, 30)).save(stream, "JPEG")
    return stream.getvalue()


def png(label: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 8), label, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pack(path: Path, *files: tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "classes.yaml").write_text(CLASSES)
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as archive:
        for name, payload in files:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))


def sample(key: str, shade: int = 9) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return (f"{key}.jpg", jpg(shade)), (f"{key}.png", png())


def indexed(folder: Path, **options: object) -> list[str]:
    """Index tars, read the set in every way, and return the lines of the report."""
    report: list[str] = []
    classes = folder / "classes.yaml"
    index_tars(folder, classes, runner=processes(1), report=report.append, **options)
    made = Path(options.get("out") or folder)
    verify(made, runner=processes(1), report=lambda line: None)
    store, shown = Store(made), ShardSet.load(made)
    for number, key in enumerate(store.index.key):
        assert store.load(number).key == load(shown, number)[1].key == key
    return report


def keys(folder: Path) -> list[str]:
    return sorted(Store(folder).index.key)


def stock_keys(tar: Path) -> set[str]:
    """Return the keys of the samples that stock webdataset finds an image and a map for."""
    read = webdataset.WebDataset(str(tar), shardshuffle=False)
    return {row["__key__"] for row in read if {"jpg", "png"} <= row.keys()}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    "key", ["café/Übung", "写真/画像 1", "a" * 99, "b" * 200, f"{'folder/' * 40}long", "plain"]
)
def test_names_are_those_of_stock_webdataset(tmp_path, format, key):
    tar = tmp_path / "a.tar"
    pack(tar, *sample("first"), *sample(key), *sample("last"), format=format)
    indexed(tmp_path)
    assert set(keys(tmp_path)) == stock_keys(tar) == {"first", key, "last"}


def test_what_is_not_a_sample_is_skipped_and_named(tmp_path):
    pack(
        tmp_path / "a.tar",
        ("README", b"text"),
        ("info.txt", b"text"),
        ("__meta__/x.jpg", jpg()),
        ("__MACOSX/._a.jpg", b"apple"),
        ("._a.jpg", b"apple"),
        ("../out.jpg", jpg()),
        (".ipynb_checkpoints/a-checkpoint.jpg", jpg()),
        *sample("a"),
        ("b.jpg", jpg()),
        ("._b.png", b"apple"),
        ("b.png", png()),
    )
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "._a.tar").write_bytes(b"apple")
    (tmp_path / "0.tar").touch()
    pack(tmp_path / "1.tar")
    (tmp_path / "folder.tar").mkdir()
    report = indexed(tmp_path)
    assert keys(tmp_path) == ["a", "b"]
    assert report[0] == f"{tmp_path}: skipped ._a.tar, 0.tar, hidden or empty"
    assert report[1].endswith(" and 4 more")
    assert report[1].startswith("a.tar: no sample holds README, __meta__/x.jpg, ")
    assert findings(tmp_path) == []


def test_extensions_are_compared_in_lower_case(tmp_path):
    pack(tmp_path / "A.TAR", ("a.JPG", jpg()), ("a.Png", png()), ("b.jpeg", b""), *sample("c"))
    indexed(tmp_path, image=".JPG")
    assert keys(tmp_path) == ["a", "c"]


def test_keys_that_several_tars_share_get_the_name_of_the_tar(tmp_path):
    pack(tmp_path / "a.0.tar", *sample("0", 1), *sample("own"))
    pack(tmp_path / "b.tar", *sample("0", 2))
    report = indexed(tmp_path)
    assert keys(tmp_path) == ["a.0/0", "b/0", "own"]
    assert "2 samples have keys of several tars; they are named TAR/KEY" in report


def test_a_sample_that_cannot_be_stored_is_a_finding(tmp_path):
    pack(
        tmp_path / "a.tar",
        *sample("good"),
        *sample("line\nend"),
        *sample("/etc/absolute"),
        *sample("windows\\name"),
        *sample("\udcff"),
        ("twice.jpg", jpg()),
        ("twice.JPG", jpg()),
        ("twice.png", png()),
        format=tarfile.GNU_FORMAT,
    )
    indexed(tmp_path)
    assert keys(tmp_path) == ["good"]
    assert sorted(code for _, code in findings(tmp_path)) == [17, 23, 23, 23, 23]


@pytest.mark.parametrize("name", ["a b (1).tar", "ü.tar", "a{0..9}.tar", "#1?.tar", "-x.tar"])
def test_a_set_of_tars_with_odd_names_can_be_read(tmp_path, name):
    pack(tmp_path / name, *sample("a"))
    indexed(tmp_path)
    assert keys(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["a\n.tar", "a\\b.tar", os.fsdecode(b"\xff.tar")])
def test_a_tar_that_no_manifest_can_list_is_refused(tmp_path, name):
    pack(tmp_path / name, *sample("a"))
    with pytest.raises(UsageError, match="rename the file"):
        indexed(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_a_tar_is_read(tmp_path, monkeypatch):
    pack(tmp_path / "a.tar", *sample("a"))
    (tmp_path / "a.tar").write_bytes(b"not a tar")

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UsageError, match=r"Permission denied.*give another folder with --out"):
        indexed(tmp_path)


def test_a_set_in_another_folder_has_links_to_the_tars(tmp_path):
    folder, out = tmp_path / "tars", tmp_path / "out/set"
    pack(folder / "a.tar", *sample("a"))
    before = sorted(folder.iterdir())
    for _ in range(2):
        indexed(folder, out=out)
        assert keys(out) == ["a"]
    assert sorted(folder.iterdir()) == before
    (out / "a.tar").unlink()
    (out / "a.tar").write_bytes(b"of the user")
    with pytest.raises(UsageError, match="in the way"):
        indexed(folder, out=out)
    assert (out / "a.tar").read_bytes() == b"of the user"


def test_a_manifest_of_other_software_is_not_overwritten(tmp_path):
    pack(tmp_path / "a.tar", *sample("a"))
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match=r"manifest\.json that is not that of a shard set.*--out"):
        indexed(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == "[]"
