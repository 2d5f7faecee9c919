"""The page of `evaluate --report`: its choice of images, and the page in a real browser."""

import numpy as np
import pytest

from jobs.report.charts import line_chart
from jobs.report.choice import confident_mistakes, worst_images
from jobs.report.figures import Figures
from jobs.report.report import write_report
from pipeline.score.analysis import analyze
from pipeline.score.pairs import pairs
from pipeline.score.record import Image, Record
from pipeline.score.scores import finite
from pipeline.score.semantic import ClassPixels
from shards.format.schema import Segment
from shards.format.taxonomy import Category, Taxonomy
from tests.browser import CHROMIUM, HOSTILE, browser
from tests.jobs import small

TAXONOMY = Taxonomy.of("pets", [
    Category(1, f"cat{HOSTILE}", True, (200, 40, 40)),
    Category(2, "dog", True, (40, 160, 40)),
    Category(3, "sky", False, (60, 90, 220)),
])  # fmt: skip


def counted(true, predicted, scores=None):
    """Return the counters of an image of 12 columns, each with a true and a predicted segment."""

    def segments(text):
        ids = np.array([[int(c) for c in text]] * 4, np.int32)
        return ids, {n: int((ids == n).sum()) for n in sorted(set(ids.ravel().tolist()) - {0})}

    truth, true_areas = segments(true[0])
    prediction, areas = segments(predicted[0])
    given = {n: Segment(n, true[1][n - 1], 0, area, []) for n, area in true_areas.items()}
    return pairs(prediction, {n: predicted[1][n - 1] for n in areas}, truth, given, scores)


def record_of(images):
    about = {"names": list(TAXONOMY.names), "things": list(TAXONOMY.things), "data": ""}
    named = [Image(f"key{n}", n, 4, 12) for n in range(len(images))]
    return Record(about, named, panoptic=images)


PERFECT = counted(("111111222222", [0, 2]), ("111111222222", [0, 2]), [0.9, 0.8])
WRONG_CLASS = counted(("111111222222", [0, 2]), ("111111222222", [1, 2]), [0.99, 0.8])
POOR_MASK = counted(("111111222222", [0, 2]), ("110000222222", [0, 2]), [0.7, 0.8])
NOTHING = counted(("111111222222", [0, 2]), ("000000000000", []), [])
INVENTED = counted(("111111000000", [2]), ("111111000022", [2, 1]), [0.6, 0.95])


def test_the_worst_images_come_first():
    record = record_of([PERFECT, WRONG_CLASS, POOR_MASK, NOTHING, INVENTED])
    worst = worst_images(record, 0)
    assert [one.number for one in worst] == [3, 1, 2, 0, 4]
    # 1 true positive of IoU 1, 1 false positive, 1 false negative: 1 / (1 + 1/2 + 1/2)
    assert worst[1].quality == pytest.approx(50)
    assert (worst[1].missed, worst[1].invented) == ([0], [1])
    assert worst[0].missed == [0, 2]
    assert worst[-1].quality == 100


def test_confident_mistakes_name_what_the_truth_has_there():
    record = record_of([PERFECT, WRONG_CLASS, POOR_MASK, NOTHING, INVENTED])
    found = [(one.number, one.category, one.nearest, round(one.iou, 2))
             for one in confident_mistakes(record)]  # fmt: skip
    # The invented dog lies on void and is ignored, as panopticapi counts.
    assert found == [(1, 1, 0, 1.0), (2, 0, 0, 0.33)]


def test_images_of_semantic_sets_are_ranked_by_their_pixels():
    about = {"names": ["a", "b"], "things": [False, False], "data": ""}
    pixels = [np.array([[9, 1], [10, 10], [10, 2]]), np.array([[5, 5], [10, 10], [10, 10]])]
    parts = [ClassPixels(np.array([0, 1]), *values) for values in pixels]
    record = Record(about, [Image("x", 0, 4, 5), Image("y", 1, 4, 5)], semantic=parts)
    worst = worst_images(record, 0)
    assert [(one.key, one.quality) for one in worst] == [("y", 50.0), ("x", 50.0)]
    assert [one.missed for one in worst] == [[0, 1], [1]]  # of equal quality, more errors first
    assert not confident_mistakes(record)


def test_a_chart_needs_two_finite_points():
    assert line_chart("loss", {"loss": [(1, 2.0), (2, float("nan"))]}, "step") is None
    chart = line_chart("loss", {"loss": [(1, 2.0), (5, 3.0)], "none": []}, "step")
    assert chart is not None
    assert chart.lines == ["loss"]
    assert chart.svg.count("<polyline") == 1


@pytest.fixture(scope="module")
def page_of_report(tmp_path_factory):
    """A page about five images, without a network."""
    folder = tmp_path_factory.mktemp("report")
    record = record_of([PERFECT, WRONG_CLASS, POOR_MASK, NOTHING, INVENTED])
    rows = [
        {"name": name, "isthing": True, "images": n, "predicted_in": n, "highest_score": 0.5,
         "PQ": 10.0 * n, "SQ": None, "RQ": 1.0}
        for n, name in enumerate(TAXONOMY.names)
    ]  # fmt: skip
    scores = finite({"PQ": 41.26, "SQ": 80.0, "RQ": 51.0, "images": 5, "classes": rows,
                     "analysis": analyze(record)})  # fmt: skip
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
    figures = Figures(
        [one._asdict() | {"pictures": [picture] * 3} for one in worst_images(record, 0)],
        [one._asdict() | {"pictures": [picture] * 2} for one in confident_mistakes(record)],
    )
    write_report(folder / "out.html", f"run{HOSTILE}, step 4", scores, TAXONOMY, figures, None)
    return folder / "out.html"


@pytest.mark.skipif(not CHROMIUM, reason="chromium")
def test_the_report_sorts_filters_and_loads_nothing(page_of_report, tmp_path):
    with browser(tmp_path) as page:
        page.open(page_of_report.as_uri())
        assert page.texts("h1") == [f"run{HOSTILE}, step 4"]
        assert "41.3\nPQ" in page.texts("#headline")[0].replace("\n\n", "\n")
        assert len(page.texts("#ladder tr")) == 6
        assert len(page.texts("#worst figure")) == 5
        assert len(page.texts("#mistakes figure")) == 2
        assert page.run("[...document.images].every((i) => i.naturalWidth > 0)")

        first = "#classes tbody tr:nth-child(1) td:first-child"
        assert page.texts(first) == ["sky"]
        page.click("#classes th:nth-child(1) button")
        assert page.texts(first) == [f"cat{HOSTILE}"]
        page.type("#search", "dog")
        assert page.texts("#classes tbody td:first-child") == ["dog"]
        page.click(first)
        assert page.texts("#chosen h2") == ["Only dog"]
        assert page.texts("#worst figcaption") == [
            f"key1: PQ of the image 50.0; missed cat{HOSTILE}; invented dog"
        ]
        assert page.texts("#mistakes figcaption") == [
            f"dog 0.99; the truth has cat{HOSTILE} (IoU 1.00); key1"
        ]
        page.click("#chosen button")
        assert len(page.texts("#worst figure")) == 5
        assert not page.problems
        assert page.requested == [page_of_report.as_uri()]


def test_evaluate_writes_the_report(photographs, tmp_path):
    small.untrained(tmp_path, photographs)
    outcome = small.call(tmp_path, "evaluate", small.NAME, "--report", "out.html")
    assert outcome.code == 0, outcome.err
    assert "out.html: open this page in a browser" in outcome.out
    text = (tmp_path / "out.html").read_text()
    assert text.count("data:image/jpeg;base64,/9j/") > 3 * 5
    for part in ("What PQ would be", "The 5 worst images", "most confident mistakes"):
        assert part in text
    (tmp_path / "mine.html").write_text("mine")
    for name, why in {
        "mine.html": "exists already and may be yours",
        str(photographs / "val/out.html"): "which is read",
        "no/out.html": "does not exist",
    }.items():
        outcome = small.call(tmp_path, "evaluate", small.NAME, "--report", name)
        assert outcome.code == 2
        assert why in small.complaint(outcome)
