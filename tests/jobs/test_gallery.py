"""The gallery of `predict`: opened, clicked, and filtered in a real browser."""

import numpy as np
import pytest
from PIL import Image

from jobs.predict.inputs import ImageFile, Images
from jobs.predict.results import GALLERY, Results
from jobs.segmenter import Segmented
from pipeline.score.inference import Result
from shards.format.taxonomy import Category, Taxonomy
from tests.browser import CHROMIUM, HOSTILE, browser

TAXONOMY = Taxonomy.of("pets", [
    Category(1, f"cat{HOSTILE}", True, (200, 40, 40)),
    Category(2, "dog", True, (40, 160, 40)),
    Category(300, "sky", False, (60, 90, 220)),
])  # fmt: skip
SCORES = {0: 0.91, 1: 0.42, 2: 0.77}  # by class
# The classes in each image, from left to right; names with characters that URLs and HTML reserve.
IMAGES = {"a": [0, 2], "sub/b #1%": [1, 2], f"c{HOSTILE}": [0, 1], "empty": []}


def segmented(classes, task="panoptic"):
    """Return a segmented image with vertical stripes of these classes."""
    panoptic = np.zeros((48, 64), np.int32)
    for n, columns in enumerate(np.array_split(np.arange(64), max(len(classes), 1))):
        panoptic[:, columns] = n + 1 if classes else 0
    segments = [
        {"id": n, "category": c, "isthing": TAXONOMY.things[c], "score": SCORES[c]}
        for n, c in enumerate(classes, start=1)
    ]
    table = np.array([0, *classes])
    result = Result(
        panoptic=panoptic,
        segments=segments,
        scores=np.array([SCORES[c] for c in classes], np.float32),
        categories=np.array(classes, np.int64),
        masks=[panoptic == n for n in range(1, len(classes) + 1)],
        semantic=table[panoptic],
        highest_scores=np.full(len(TAXONOMY), 0.5, np.float32),
    )
    image = np.full((48, 64, 3), 128, np.uint8)
    return Segmented(image, result, TAXONOMY, task)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of results, as `predict` leaves it."""
    out = tmp_path_factory.mktemp("gallery")
    results = Results(out, ("panoptic", "instance", "semantic"), 0.0, "weights")
    images = Images(out)
    for id, classes in IMAGES.items():
        images.sources[id] = ImageFile(out / "photo.jpg")
        images.names[id] = f"{id}.jpg"
        for name in results.files(id):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
        results.write(id, images.names[id], "stamp", segmented(classes))
    images.sources["bad"], images.names["bad"] = ImageFile(out / "bad.jpg"), f"bad{HOSTILE}.jpg"
    results.finish(images, TAXONOMY, {"run": "mine", "step": 4}, {"bad": f"why{HOSTILE}"})
    return out


def test_label_maps_hold_the_publishers_ids(folder):
    labels = np.asarray(Image.open(folder / "semantic/sub/b #1%.png"))
    assert labels.dtype == np.uint16
    assert labels[0, 0] == 2
    assert labels[0, -1] == 300


def test_the_semantic_picture_shows_the_class_of_each_pixel():
    regions = segmented([0, 2], "semantic").regions
    assert [region.category for region in regions.regions] == [0, 2]
    assert regions.ids[0, 0] == 1
    assert regions.ids[0, -1] == 3


@pytest.mark.skipif(not CHROMIUM, reason="chromium")
def test_the_gallery_filters_by_class_score_and_name(folder, tmp_path):
    with browser(tmp_path) as page:
        page.open((folder / GALLERY).as_uri())
        assert page.texts("#count") == ["4 of 4 images"]
        names = [f"{id}.jpg" for id in IMAGES]
        assert page.texts("figcaption") == names
        chips = dict(text.rsplit(" ", 1) for text in page.texts("#classes button"))
        assert chips == {f"cat{HOSTILE}": "2", "dog": "2", "sky": "2"}
        assert page.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")

        page.point("figure:nth-child(1) path:nth-of-type(1)")
        assert page.texts("#tip") == [f"cat{HOSTILE} 0.91"]

        page.click("#classes button:nth-child(2)")
        assert page.texts("figcaption") == [names[1], names[2]]
        assert page.texts("#count") == ["2 of 4 images"]
        page.run("least.value = 0.5, least.dispatchEvent(new Event('input'))")
        assert page.texts("#count") == ["0 of 4 images"]
        page.click("#clear")
        assert page.texts("#count") == ["4 of 4 images"]
        page.type("#search", "sub/")
        assert page.texts("figcaption") == [names[1]]
        page.click("#clear")
        page.run("order.value = 'low', order.dispatchEvent(new Event('input'))")
        assert page.texts("figcaption")[:2] == [names[1], names[2]]

        page.click("#left-out summary")
        assert page.texts("#left-out td") == [f"bad{HOSTILE}.jpg", f"why{HOSTILE}"]
        assert not page.problems
        assert page.run("document.title") == "4 images segmented by mine"
        assert all(url.startswith(folder.as_uri()) for url in page.requested)
        page.click("figure:nth-child(1) img")  # the link to the whole picture
        page.run("new Promise((done) => setTimeout(done, 200))")
        assert page.run("location.href").endswith("/sub/b%20%231%25.png")
