"""COCO's JSON as tools write it: each value is read as it was meant, or its image is left out."""

import contextlib
import copy
import json
import random
import re

import pytest

from shards.doctor import load_findings
from shards.errors import DataError
from shards.format.manifest import Manifest
from tests.shards.raw_coco import (
    PACKED,
    PAIRS,
    POLYGON,
    RUNS,
    annotation,
    first,
    made,
    of_all,
    photo,
    plain,
    reorder,
    rle,
    samples,
)

SAME = {
    "image ids as text in annotations": of_all("annotations", image_id=str),
    "one image id as text": annotation(image_id="1"),
    "image ids as text in images": of_all("images", id=str),
    "image ids as floats": of_all("images", id=float),
    "image id as text of a float": annotation(image_id="1.0"),
    "annotation ids as text": of_all("annotations", id=str),
    "annotation ids as floats": of_all("annotations", id=float),
    "category ids as text": of_all("categories", id=str),
    "category ids as floats in annotations": of_all("annotations", category_id=float),
    "category ids as text in annotations": of_all("annotations", category_id=str),
    "sizes as floats": of_all("images", width=float, height=float),
    "sizes as text": of_all("images", width=str, height=str),
    "no size": photo(width=..., height=...),
    "no height": photo(height=...),
    "size null": photo(width=None, height=None),
    "crowd as text": annotation(iscrowd="0"),
    "crowd as a word": annotation(iscrowd="False"),
    "crowd as a boolean": annotation(iscrowd=False),
    "crowd as a float": annotation(iscrowd=0.0),
    "crowd null": annotation(iscrowd=None),
    "no crowd": annotation(iscrowd=...),
    "area as text": annotation(area="192.0"),
    "area null": annotation(area=None),
    "no area": annotation(area=...),
    "box as text": annotation(bbox=["8", "8", "16", "1.2e1"]),
    "no box": annotation(bbox=...),
    "box null": annotation(bbox=None),
    "flat polygon": annotation(segmentation=POLYGON),
    "polygon as text": annotation(segmentation=[list(map(str, POLYGON))]),
    "polygon of points": annotation(segmentation=[PAIRS]),
    "points": annotation(segmentation=PAIRS),
    "contour of OpenCV": annotation(segmentation=[[point] for point in PAIRS]),
    "contours of OpenCV": annotation(segmentation=[[[point] for point in PAIRS]]),
    "closed ring": annotation(segmentation=[[*POLYGON, *POLYGON[:2]]]),
    "two polygons": annotation(
        segmentation=[[8, 8, 16, 8, 16, 20, 8, 20], [16, 8, 24, 8, 24, 20, 16, 20]]
    ),
    "run lengths": annotation(segmentation=rle()),
    "compressed run lengths": annotation(segmentation=rle(PACKED)),
    "run lengths in a list": annotation(segmentation=[rle()]),
    "compressed run lengths and a polygon": annotation(segmentation=[rle(PACKED), POLYGON]),
    "run lengths as floats": annotation(segmentation=rle([float(run) for run in RUNS])),
    "run lengths as text": annotation(segmentation=rle([str(run) for run in RUNS])),
    "size of run lengths as text": annotation(segmentation=rle(size=("48", 64.0))),
    "image entry twice": lambda document: document["images"].append(
        {
            **document["images"][0],
            "width": 64.0,
            "date_captured": "today",
        }
    ),
    "category twice": lambda document: document["categories"].append(document["categories"][0]),
    "another order": reorder,
    "number as a name": lambda document: document["categories"][1].update(name=7),
    "color null": first("categories", color=None),
    "license without an id": lambda document: document.update(licenses=[{"name": "CC"}]),
    "license that is not an object": lambda document: document.update(licenses=["CC"]),
    "licenses null": lambda document: document.update(licenses=None),
    "license of an image is a list": photo(license=[1]),
    "unknown license": photo(license=5),
    "origin is a number": photo(flickr_url=5),
    "origin is half a character": photo(flickr_url="\ud800"),
    "byte order mark": None,
    "file name of LVIS": photo(file_name=..., coco_url="http://images.org/train2017/a.png"),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The shards of the plain document."""
    folder = made(tmp_path_factory.mktemp("plain"), plain())
    assert not load_findings(folder)
    return Manifest.load(folder)


@pytest.mark.parametrize("case", SAME)
def test_however_a_value_is_written_the_shards_are_the_same(shards, tmp_path, case):
    document = plain()
    if SAME[case] is None:
        document = "\ufeff" + json.dumps(document)
    else:
        SAME[case](document)
    folder = made(tmp_path, document, strict=True)
    assert not load_findings(folder)
    manifest = Manifest.load(folder)
    assert manifest.shards == shards.shards
    assert manifest.taxonomy == shards.taxonomy


NAN, INF = float("nan"), float("inf")
LEFT_OUT = {
    **{
        f"polygon with {bad!r} at {at}": (
            22,
            r"instance 1: the polygon .* is not a list of finite numbers",
            annotation(segmentation=[[*POLYGON[:at], bad, *POLYGON[at + 1 :]]]),
        )
        for bad in (NAN, INF, "1e400", 10**400, None, "x", "nan")
        for at in (0, 3)
    },
    **{
        f"{name} {bad!r}": (22, f"instance 1: {name} .* is not a finite number", change)
        for bad in (NAN, -INF, "1e400", 10**400, "wide", "nan", [], True)
        for name, change in (
            ("area", annotation(area=bad)),
            ("bbox", annotation(bbox=[8, bad, 16, 12])),
        )
    },
    **{
        f"{name} {bad!r}": (22, f"{name} .* is not a whole number", photo(**{name: bad}))
        for bad in (NAN, INF, "1e400", 10**400, 64.5, "wide", "064", True, [64])
        for name in ("width", "height")
    },
    "width 0": (3, "the image is 64x48, its truth 0x48", photo(width=0)),
    "width negative": (3, "its truth -64x48", photo(width=-64)),
    "box of three": (22, "bbox .* is not a list of four", annotation(bbox=[1, 2, 3])),
    "box of text": (22, "bbox .* is not a list of four", annotation(bbox="8 8 16 12")),
    **{
        f"crowd {bad!r}": (22, "iscrowd .* is neither 0 nor 1", annotation(iscrowd=bad))
        for bad in (2, -1, 0.5, "maybe", "", NAN, [], {})
    },
    **{
        f"annotation id {bad!r}": (22, "id ", annotation(id=bad))
        for bad in (..., None, True, [1], {}, "", NAN, 1.5, 10**400, "\ud800")
    },
    **{
        f"category_id {bad!r}": (22, "category_id ", annotation(category_id=bad))
        for bad in (..., None, True, "cat", [1], NAN, 1.5)
    },
    "unknown category": (13, "category id 9 ", annotation(category_id="9")),
    **{
        f"segmentation {bad!r}": (22, "instance 1: ", annotation(segmentation=bad))
        for bad in (
            ...,
            None,
            5,
            "[[8, 8, 24, 8, 24, 20]]",
            [[[8, 8, 0], [24, 8, 0]]],
            [[8, [8]]],
            [POLYGON, None],
            [[POLYGON]],
        )
    },
    "points as objects": (
        22,
        "instance 1: the polygon",
        annotation(segmentation=[[{"x": 8, "y": 8}, {"x": 24, "y": 8}, {"x": 24, "y": 20}]]),
    ),
    "far away": (22, "too far outside", annotation(segmentation=[[8, 8, 1e9, 8, 24, 20]])),
    "endless outline": (
        22,
        "too far outside",
        annotation(segmentation=[[-9e4, 0, 9e4, 20] * 100]),
    ),
    **{
        f"run lengths {bad!r:.50}": (
            20,
            "instance 1 has run lengths of",
            annotation(segmentation=bad),
        )
        for bad in (
            {},
            rle(None),
            rle([]),
            rle(5),
            rle({}),
            rle([1.5, 3070.5]),
            rle([NAN]),
            rle([10**400]),
            rle([-(10**400), 64 * 48]),
            rle([2**62] * 4 + [64 * 48]),
            rle([-1, 64 * 48 + 1]),
            rle(["x"]),
            rle(str(PACKED.encode())),
            rle(PACKED[:-1]),
            rle("\ud800"),
            rle(PACKED, (64, 48)),
            rle(size=(48,)),
            rle(size=(48, "wide")),
            rle(size=(48, 64.5)),
            {"counts": RUNS},
            {"size": 5, "counts": RUNS},
            [rle(size=(1, 1))],
        )
    },
    **{
        f"file_name {bad!r}": (code, "a.json at byte 12: images: file_name ", photo(file_name=bad))
        for code, bad in (
            (22, ...),
            (22, None),
            (22, 7),
            (22, ["a.png"]),
            (22, "/photos/a.png"),
            (22, "photos\\a.png"),
            (22, "../photos/a.png"),
            (22, "C:\\photos\\a.png"),
            (22, ""),
            (23, "a\n.png"),
            (23, "\x1b[2Ja.png"),
            (23, "\ud800.png"),
            (23, "x" * 300 + ".png"),
            (23, "a.gif"),
            (23, "a"),
            (22, "."),
        )
    },
    **{
        f"image id {bad!r}": (22, "a.json at byte 12: images: id ", photo(id=bad))
        for bad in (..., None, True, [1], NAN, 1.5, "")
    },
    **{
        f"image {bad!r}": (
            22,
            "a.json at byte 12: images: .* is not an object",
            lambda document, bad=bad: document["images"].__setitem__(0, bad),
        )
        for bad in (None, 5, "a.png", [], [1])
    },
    "image id of two images": (
        17,
        "gives 2 images the id 1",
        lambda document: document["images"].append(document["images"][0] | {"width": 65}),
    ),
    "name of two images": (
        17,
        "have the key a",
        lambda document: document["images"].append(document["images"][0] | {"id": 3}),
    ),
    "missing file": (7, "z.png is missing$", photo(file_name="z.png")),
    "folder in front": (
        7,
        "x/a.png is missing, but the folder has a.png: correct file_name",
        photo(file_name="x/a.png"),
    ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_value_without_one_meaning_leaves_its_image_out_and_no_other(tmp_path, case):
    code, pattern, change = LEFT_OUT[case]
    document = plain()
    change(document)
    folder = made(tmp_path, document)
    assert list(samples(folder)) == ["b"]
    found = [one for one in load_findings(folder) if one.code != 24]
    assert {one.code for one in found} == {code}
    assert all(one.file and one.file.isprintable() for one in found)

    assert all(re.search(pattern, one.detail) for one in found), found
    assert all("Error" not in one.detail for one in found)
    with pytest.raises(DataError, match=f"finding {code}"):
        made(tmp_path, document, strict=True)


ODD = [
    *(None, True, -1, 7, 1.5, NAN, -INF, 10**400, -(10**400), "", "1", "x", "\ud800", "\0", "../a"),
    *([], {}, [[]], [1], {"id": 1}, POLYGON, PAIRS, rle(), rle(PACKED), [rle()], [[1e5] * 6]),
]


def containers(value):
    """Yield every list and object in a document that is not empty."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for entry in value.values() if isinstance(value, dict) else value:
            yield from containers(entry)


@pytest.mark.parametrize("seed", range(4))
def test_odd_values_anywhere_end_in_a_set_that_all_accept_or_in_an_error(tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(15):
        document = plain()
        document["annotations"].append(document["annotations"][0] | {"segmentation": rle(PACKED)})
        for _ in range(rng.choice([1, 1, 2])):
            inside = rng.choice(list(containers(document)))
            key = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            inside[key] = copy.deepcopy(rng.choice(ODD))
        with contextlib.suppress(DataError):
            made(tmp_path, document)
