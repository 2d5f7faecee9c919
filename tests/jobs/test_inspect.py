"""The counts of `inspect` against independent ones, and its page in a real browser."""

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from jobs.inspect.inspect import GALLERY_SIDE, draw_thumbnail
from jobs.inspect.page import page
from pipeline.pictures.regions import true_regions
from shards.build.build import build
from shards.errors import DataError
from shards.inspect import ShardSet, load, overview, pick
from shards.parallel import processes
from tests.jobs import small
from tests.shards import raw_folder, raw_maps
from tests.shards.raw import CATEGORIES, SAMPLE, RawImage, edit, write

HOSTILE = """<img src=x onerror="document.title='taken'">&'"""
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def counted(photographs):
    """The overview of the photographs of the train split."""
    return overview(photographs / "train", processes(1))


def test_counts_are_those_of_the_publishers_files(counted):
    names, tally = counted.manifest.taxonomy.names, counted.tally
    images, numbers, pixels = {}, {}, Counter()
    for kind in ("panoptic", "instances"):
        document = json.loads((SAMPLE / f"annotations/{kind}_train2017.json").read_text())
        name = {category["id"]: category["name"] for category in document["categories"]}
        numbers[kind] = Counter()
        for annotation in document["annotations"]:
            for entry in annotation.get("segments_info", [annotation]):
                category = name[entry["category_id"]]
                images.setdefault(category, set()).add(annotation["image_id"])
                numbers[kind][category] += 1
                pixels[category] += entry["area"] if kind == "panoptic" else 0
    instances = [entry for entry in document["annotations"] if not entry["iscrowd"]]
    per_image = Counter(entry["image_id"] for entry in instances)
    for k, name in enumerate(names):
        assert tally.images[k] == len(images.get(name, ()))
        assert tally.segments[k] == numbers["panoptic"][name]
        assert tally.instances[k] == numbers["instances"][name]
        assert np.isclose(counted.shares[k], pixels[name] / pixels.total(), rtol=1e-12)
    assert sorted(tally.areas) == sorted(entry["area"] for entry in instances)
    expected = [per_image[image["id"]] for image in document["images"]]
    assert sorted(tally.objects) == sorted(expected)
    small_count = sum(entry["area"] < 1024 for entry in instances)
    large_count = sum(entry["area"] >= 9216 for entry in instances)
    medium_count = len(instances) - small_count - large_count
    assert counted.by_size == (small_count, medium_count, large_count)
    sizes = sorted((image["width"], image["height"]) for image in document["images"])
    assert sorted(map(tuple, counted.sizes.tolist())) == sizes


def test_semantic_sets_are_counted_by_their_pixels(tmp_path):
    raw = raw_maps.write(raw_folder, tmp_path / "raw")
    raw_maps.made(raw_folder, raw, tmp_path / "out", tasks=["semantic"])
    counted = overview(tmp_path / "out/train", processes(1))
    maps = [raw_maps.pixels(path) for path in (raw / "labels/train").rglob("*.png")]
    for k, category in enumerate(counted.manifest.taxonomy.categories):
        of_class = [int((labels == category.id).sum()) for labels in maps]
        assert counted.tally.pixels[k] == sum(of_class)
        assert counted.tally.images[k] == np.count_nonzero(of_class)
    assert not len(counted.tally.areas)
    assert "Object size" not in page([(counted, [])])


def test_smaller_instances_are_drawn_on_larger_ones(tmp_path):
    large, little = np.zeros((2, 24, 32), bool)
    large[:20, :20] = little[5:9, 5:9] = True
    raw = write(tmp_path / "raw", [RawImage("a.jpg", masks=[(3, little, 0), (7, large, 0)])])
    build("coco", raw, tmp_path / "out", jobs=1, tasks=["instance"], report=lambda _: None)
    _, sample = load(ShardSet.load(tmp_path / "out/val"), 0)
    ids, regions = true_regions(sample)["instances"]
    assert [region.id for region in regions] == [1, 2]
    assert np.array_equal(ids, np.where(little, 1, np.where(large, 2, 0)))


def test_one_sample_is_drawn_beside_its_truth(photographs, tmp_path):
    outcome = small.call(tmp_path, "inspect", str(photographs), "000000000285")
    assert outcome.code == 0, outcome.err
    image, _ = load(ShardSet.load(photographs / "val"), 0)
    drawn = np.asarray(Image.open(tmp_path / "000000000285.png"))
    assert drawn.shape[1] > 3 * image.shape[1]  # image, panoptic, instances
    assert any(np.array_equal(drawn[top : top + len(image), 12 : 12 + image.shape[1]], image)
               for top in range(len(drawn) - len(image)))  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["000000000286"], 2, "no sample '000000000286'; similar keys are 00000000"),
        (["--out", "a.png"], 2, "--out: is only for drawing one sample; add its KEY"),
        (["000000000285", "--html", "a.html"], 2, "--html: is only for whole sets"),
        (["--html", "missing/a.html"], 2, r"missing/a\.html: .* does not exist; create it first"),
    ],
)
def test_user_errors_are_one_line(photographs, tmp_path, words, code, text):
    outcome = small.call(tmp_path, "inspect", str(photographs), *words)
    assert outcome.code == code
    assert re.search(text, small.complaint(outcome))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["000000000285"], "000000000285.png"),
        (["000000000285", "--out", "sample.png"], "sample.png"),
        (["--html", "page.html"], "page.html"),
    ],
)
def test_a_file_of_the_user_is_kept_unless_forced(photographs, tmp_path, words, name):
    command = ["inspect", str(photographs / "val"), *words, "--jobs", "1"]
    for _ in range(2):  # the command replaces its own file
        outcome = small.call(tmp_path, *command)
        assert outcome.code == 0, outcome.err
    written = (tmp_path / name).read_bytes()
    (tmp_path / name).write_text("mine")
    outcome = small.call(tmp_path, *command)
    assert outcome.code == 2
    assert re.search(rf"--(out|html) {name}: exists already .*--force", small.complaint(outcome))
    assert (tmp_path / name).read_text() == "mine"
    assert small.call(tmp_path, *command, "--force").code == 0
    assert (tmp_path / name).read_bytes() == written


def test_a_shard_set_is_never_written_to(photographs, tmp_path):
    manifest = photographs / "val/manifest.json"
    before = manifest.read_bytes()
    for option in ("000000000285", "--out"), ("--html",):
        words = ["inspect", str(photographs), *option, str(manifest), "--force"]
        outcome = small.call(tmp_path, *words)
        assert outcome.code == 2
        assert "which is read" in small.complaint(outcome)
    assert manifest.read_bytes() == before


def test_thin_pictures_are_drawn(tmp_path):
    sizes = {"wide": (5000, 1), "tall": (1, 5000), "usual": (32, 24)}
    images = [
        RawImage(f"{name}.jpg", size, np.full(size[::-1], 300), {300: 3})
        for name, size in sizes.items()
    ]
    build("coco", write(tmp_path / "raw", images), tmp_path / "out", jobs=1, report=lambda _: None)
    outcome = small.call(tmp_path, "inspect", "out", "--html", "page.html", "--jobs", "1")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg;base64,/9j/") == len(sizes)
    for name in sizes:
        assert small.call(tmp_path, "inspect", "out", name).code == 0
        assert Image.open(tmp_path / f"{name}.png").height > sizes[name][1]


def test_names_of_a_set_are_escaped_in_the_terminal(tmp_path):
    escape = "\x1b]0;taken\x07"
    raw = write(tmp_path / "raw", [RawImage("a.jpg", (32, 24), np.full((24, 32), 300), {300: 3})])
    build("coco", raw, tmp_path / f"out{escape}", jobs=1, report=lambda _: None)
    for key in ([], ["a"], [f"b{escape}"]):
        outcome = small.call(tmp_path, "inspect", f"out{escape}", *key, "--jobs", "1")
        assert outcome.code == (2 if key and key != ["a"] else 0)
        assert "\x1b" not in outcome.out + outcome.err
        assert r"\x1b]0;taken\x07" in outcome.out + outcome.err


def test_a_set_without_samples_is_named(counted, monkeypatch):
    empty = ShardSet(counted.folder, replace(counted.manifest, shards=()), counted.index)
    monkeypatch.setattr(ShardSet, "load", lambda _: empty)
    with pytest.raises(DataError, match="the set holds no sample"):
        overview(counted.folder, processes(1))


def test_damage_is_named(photographs, tmp_path):
    damaged = shutil.copytree(photographs / "val", tmp_path / "val")
    tar = damaged / "000000.tar"
    blob = bytearray(tar.read_bytes())
    blob[100:150] = b"x" * 50
    tar.write_bytes(blob)
    with pytest.raises(DataError, match=r"000000\.tar: unreadable"):
        overview(damaged, processes(1))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Shard sets whose names contain markup."""
    folder = tmp_path_factory.mktemp("hostile")
    ids = np.where(np.arange(24 * 32).reshape(24, 32) % 32 < 9, 300, 70000)
    raw = write(folder / "raw", [RawImage(f"{HOSTILE}.jpg", (32, 24), ids, {70000: 90, 300: 3})])
    names = {category["id"]: category["name"] + HOSTILE for category in CATEGORIES}
    for path in (raw / "annotations").glob("*.json"):
        edit(path, lambda d: [c.update(name=names[c["id"]]) for c in d["categories"]])
    build("coco", raw, folder / "out", jobs=1, report=lambda _: None)
    return folder / "out"


class Tags(HTMLParser):
    """The elements, attributes, and texts of a document."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts = Counter(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.texts.append(data)


def shown(path) -> tuple[Tags, list[str]]:
    """Return the document as chromium renders it, and the messages of its console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command = [CHROMIUM, *flags, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Tags(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not CHROMIUM, reason="chromium")
def test_a_browser_shows_the_page_and_runs_nothing_of_it(hostile, photographs, tmp_path):
    file = tmp_path / "page.html"
    for sets in (hostile, photographs):
        assert small.call(tmp_path, "inspect", str(sets), "--html", str(file)).code == 0
        document, console = shown(file)
        assert not console
        count = len(list(sets.glob("*/manifest.json")))
        assert document.tags["section"] == count
        assert document.tags["script"] == 0
        assert not {name for name in document.attributes if name.startswith("on")}
        if sets == hostile:
            assert document.tags["img"] == 1
            assert f"cat{HOSTILE}" in document.texts
            assert HOSTILE.replace(".", "_") in document.texts  # the key
            assert document.tags["tr"] == 1 + len(CATEGORIES)
        else:
            assert document.tags["img"] == 10 + 5
            assert "person" in document.texts
            assert "Object size" in document.texts
    file.write_text(file.read_text().replace("</body>", "<script>1</script></body>"))
    assert "Content Security Policy" in shown(file)[1][0]  # a script is blocked and logged


def test_the_gallery_is_random_and_always_the_same(counted):
    assert pick(counted, 4) == pick(counted, 4)
    assert len(set(pick(counted, 4))) == 4
    assert pick(counted, 99) == list(range(10))


def test_gallery_pictures_are_small(photographs):
    picture = draw_thumbnail(ShardSet.load(photographs / "train"), 0)
    assert max(picture.shape) == GALLERY_SIDE


def test_json_goes_to_stdout_and_text_to_stderr(photographs, tmp_path):
    outcome = small.call(tmp_path, "inspect", str(photographs), "--json", "--jobs", "1")
    assert outcome.code == 0, outcome.err
    train, val = json.loads(outcome.out)
    assert (train["images"], val["images"]) == (10, 5)
    assert {row["name"]: row["images"] for row in train["classes"]}["person"] == 3
    assert "10 images in" in outcome.err
    missing = small.call(tmp_path, "inspect", str(photographs / "train"), "nothing", "--json")
    assert missing.code == 2
    assert "no sample 'nothing'" in json.loads(missing.out)["error"]["what"]
