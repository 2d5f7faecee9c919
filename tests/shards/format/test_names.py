"""Names of raw files become keys, and shards hold them as stock webdataset reads them."""

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.data.store import Store
from shards.errors import DataError
from shards.format.schema import image_ext, key_of
from shards.inspect import ShardSet, load
from shards.parallel import processes
from shards.verify import verify
from tests.shards import raw_folder
from tests.shards.raw_maps import findings, made, save

NAMES = {
    "café.jpg": "café",
    "Grüße/写真 1.jpg": "Grüße/写真 1",
    "Screenshot 3.04.05\u202fPM.jpg": "Screenshot 3_04_05\u202fPM",
    "no\u00a0break\u3000space.jpg": "no\u00a0break\u3000space",
    "👨\u200d👩\u200d👧.jpg": "👨\u200d👩\u200d👧",
    f"{'n' * 120}.rf.jpg": f"{'n' * 120}_rf",
    f"{'f' * 250}/{'ü' * 120}.jpg": f"{'f' * 250}/{'ü' * 120}",
    f"{'l' * 85}.jpeg": "l" * 85,
    f"{'m' * 86}.jfif": "m" * 86,
    f"{'o' * 96}.JPE": "o" * 96,
    "__crops__/a.jpg": "_crops__/a",
    "____/a.jpg": "_/a",
    "__x__.jpg": "__x__",
    "sub/__crops__/a.jpg": "sub/__crops__/a",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    raw = folder / "raw"
    for number, name in enumerate(NAMES):
        picture = raw / "images/train" / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number, 20, 30)).save(picture, "JPEG")
        values = np.zeros((6, 8), np.uint16)
        save((raw / "labels/train" / name).with_suffix(".png"), values)
    (raw / "classes.yaml").write_text(raw_folder.CLASSES)
    made(raw_folder, raw, folder / "out", shards=1)
    return folder / "out/train"


def test_every_reader_finds_the_keys(out):
    expected = set(NAMES.values())
    assert findings(out) == []
    verify(out, runner=processes(1), report=lambda line: None)
    store, shown = Store(out), ShardSet.load(out)
    assert {store.load(n).key for n in range(len(store))} == expected
    assert {load(shown, n)[1].file_name for n in range(len(store))} == set(NAMES)
    stock = webdataset.WebDataset(str(out / "000000.tar"), shardshuffle=False)
    members = {
        row["__key__"]: row.keys() - {"__key__", "__url__", "__local_path__"} for row in stock
    }
    assert members.keys() == expected
    assert set(map(frozenset, members.values())) == {frozenset(store.manifest.members)}


def test_lost_index_files_are_rebuilt(out):
    before = (out / "samples.parquet").read_bytes()
    (out / "samples.parquet").unlink()
    verify(out, repair=True, runner=processes(1), report=lambda line: None)
    assert (out / "samples.parquet").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["a\x1b[2J.jpg", "a\x85.jpg", "a\udcff.jpg", "n" * 252 + ".jpg", "a/" * 600 + "b.jpg"]
)
def test_names_that_no_shard_can_hold_are_refused(name):
    with pytest.raises(DataError, match="file_name"):
        key_of(name)


def test_all_extensions_of_jpeg_make_one_member():
    assert {image_ext(f"a.{ext}") for ext in ("jpg", "JPEG", "jfif", "jpe")} == {"jpg"}
