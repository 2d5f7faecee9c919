"""What COCO's JSON says as a whole: classes, colors, names of files, crowds, and contradictions."""

import json
import unicodedata
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from shards.build.build import build
from shards.doctor import load_findings
from shards.errors import DataError
from shards.format.manifest import Manifest
from shards.format.taxonomy import palette
from shards.sources.coco_item import CocoFiles
from tests.shards.raw_coco import (
    POLYGON,
    annotation,
    first,
    made,
    of_all,
    photo,
    plain,
    reorder,
    samples,
)


def category(**fields):
    return first("categories", **fields)


def rename_ids(document):
    for n, entry in enumerate(document["annotations"]):
        entry["image_id"] = f"photo-{n}"


ENDS = {
    "words as category ids": (category(id="cat"), "id 'cat' is not a whole number"),
    "category without an id": (category(id=...), "id is missing"),
    "category id null": (category(id=None), "id None is not a whole number"),
    "category id true": (category(id=True), "id True is not a whole number"),
    "category id of 400 digits": (category(id=10**400), "is not a whole number of 64 bits"),
    "category id twice": (category(id=2), "category id 2 occurs twice"),
    "category without a name": (category(name=...), "name is missing"),
    "name null": (category(name=None), "name None is not a text"),
    "name of blanks": (category(name=" "), "name ' ' is not a text"),
    "name a fraction": (category(name=1.1), "name 1.1 is not a text"),
    "name a flag": (category(name=False), "name False is not a text"),
    "name with an escape": (category(name="\x1b[2J"), "is not a text of printable"),
    "name of half a character": (category(name="\ud800"), "is not a text of printable"),
    "category that is not an object": (
        lambda document: document["categories"].append("dog"),
        "'dog' is not an object",
    ),
    "no image ids in common": (rename_ids, "first image_id is 'photo-0', and .* has the id 1"),
    "only names of Windows": (
        of_all("images", file_name=lambda name: f"photos\\{name}"),
        r"at byte 12: images: file_name .* is not a path relative to the image folder",
    ),
    "no image": (lambda document: document["images"].clear(), "no image in common"),
    "integer of 5000 digits": (lambda document: document.update(info="1e5000"), "at byte"),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_concerns_the_whole_file_ends_the_build_with_its_name(tmp_path, case):
    change, pattern = ENDS[case]
    document = plain()
    change(document)
    text = json.dumps(document).replace('"1e5000"', "1" * 5000)
    with pytest.raises(DataError, match=rf"a\.json.*{pattern}") as error:
        made(tmp_path, text)
    assert "\n" not in str(error.value)
    assert error.value.problem.fix


COLORS = [
    [28, 157, 76], [28.0, 157.0, 76.0], ["28", "157", "76"], "#1c9d4c", "#1C9D4C", "#1c9d4cff",
    "rgb(28, 157, 76)", "[28, 157, 76]", "(28,157,76)", " 28, 157,76 ",
]  # fmt: skip


@pytest.mark.parametrize("color", COLORS, ids=str)
def test_a_color_is_read_in_every_notation(tmp_path, color):
    document, lines = plain(), []
    category(color=color)(document)
    classes = Manifest.load(made(tmp_path, document, lines)).taxonomy.categories
    assert [one.color for one in classes] == [(28, 157, 76), palette(1)]
    assert not any("the colors" in line for line in lines)


@pytest.mark.parametrize(
    "color",
    ["#12345", "no color", "rgb(300, 0, 0)", [1, 2], [1, 2, 3, 4], [0.1, 0.2, 0.3], [-1, 0, 0], 5,
     {"r": 1}, [float("nan"), 0, 0], "1,2", [None] * 3, True, "x" * 200],
    ids=str,
)  # fmt: skip
def test_an_unreadable_color_is_replaced_and_reported(tmp_path, color):
    document, lines = plain(), []
    category(color=color)(document)
    classes = Manifest.load(made(tmp_path, document, lines)).taxonomy.categories
    assert [one.color for one in classes] == [palette(0), palette(1)]
    assert sum("the colors of 1 categories of a.json are unreadable" in line for line in lines) == 1


def test_a_color_may_be_named(tmp_path):
    document = plain()
    category(color="Tomato")(document)
    classes = Manifest.load(made(tmp_path, document)).taxonomy.categories
    assert classes[0].color == (255, 99, 71)


def test_the_order_of_the_categories_does_not_matter(tmp_path):
    document = plain()
    taxonomy = Manifest.load(made(tmp_path / "a", document)).taxonomy
    reorder(document)
    assert Manifest.load(made(tmp_path / "b", document)).taxonomy == taxonomy


def panoptic(folder, **isthing):
    """Write panoptic annotations of a.png: road, car, and person from the left to the right."""
    ids = np.zeros((48, 64, 3), np.uint8)
    ids[..., 0] = np.repeat([1, 2, 3, 3], 16)
    (folder / "maps").mkdir(parents=True)
    Image.fromarray(ids).save(folder / "maps/a.png")
    things = {"road": 0, "car": 1, "person": 1} | isthing
    return {
        "images": plain()["images"][:1],
        "annotations": [{
            "image_id": 1,
            "file_name": "a.png",
            "segments_info": [{"id": id, "category_id": id} for id in (1, 2, 3)],
        }],
        "categories": [
            {"id": n, "name": name, "isthing": things[name]} for n, name in enumerate(things, 1)
        ],
    }  # fmt: skip


def built(folder, document, instances=None):
    """Build panoptic annotations of a.png, with instances if given."""
    made(folder / "plain", plain())
    (folder / "p.json").write_text(json.dumps(document))
    path = folder / "i.json" if instances else None
    if path:
        path.write_text(json.dumps(instances))
    files = CocoFiles(folder / "plain/photos", path, folder / "p.json", folder / "maps")
    build("coco", files, folder / "out", splits=["val"], jobs=1, report=lambda line: None)
    return folder / "out/val"


@pytest.mark.parametrize(
    ("no", "yes"), [(0, 1), ("0", "1"), (False, True), ("false", "TRUE"), (0.0, 1.0)]
)
def test_things_are_told_by_a_flag_in_every_form(tmp_path, no, yes):
    out = built(tmp_path, panoptic(tmp_path, road=no, car=yes))
    assert Manifest.load(out).taxonomy.things == (False, True, True)


@pytest.mark.parametrize("flag", [None, "", "yes", 2, 0.5, []])
def test_another_flag_of_things_ends_the_build(tmp_path, flag):
    with pytest.raises(DataError, match=r"p\.json: the category .*isthing .* is neither 0 nor 1"):
        built(tmp_path, panoptic(tmp_path, car=flag))


def test_area_and_box_of_segments_follow_from_the_map(tmp_path):
    sample = samples(built(tmp_path, panoptic(tmp_path)))["a"]
    found = [(segment.id, segment.area, segment.bbox) for segment in sample.segments]
    assert found == [
        (1, 768.0, [0.0, 0.0, 16.0, 48.0]),
        (2, 768.0, [16.0, 0.0, 16.0, 48.0]),
        (3, 1536.0, [32.0, 0.0, 32.0, 48.0]),
    ]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"id": "x"}, 11),
        ({"id": None}, 22),
        ({"area": float("nan")}, 22),
        ({"bbox": [0, 0, 1, 10**400]}, 22),
        ({"iscrowd": "maybe"}, 22),
        ({"category_id": "road"}, 22),
        ({"category_id": "9"}, 13),
    ],
)
def test_a_segment_that_is_malformed_leaves_its_image_out(tmp_path, fields, code):
    document = panoptic(tmp_path)
    document["annotations"][0]["segments_info"][0].update(fields)
    with pytest.raises(DataError, match="no image is left"):
        built(tmp_path, document)
    assert [one.code for one in load_findings(tmp_path / "out/val")] == [code]


@pytest.mark.parametrize("name", [None, 5, "../maps/a.png", "/a.png", "maps\\a.png", "", ...])
def test_a_map_outside_its_folder_leaves_its_image_out(tmp_path, name):
    document = panoptic(tmp_path)
    first("annotations", file_name=name)(document)
    with pytest.raises(DataError, match="no image is left"):
        built(tmp_path, document)
    (one,) = load_findings(tmp_path / "out/val")
    assert (one.file, one.code) == ("a.png", 22)
    assert "p.json at byte" in one.detail


def test_two_files_that_number_the_classes_differently_are_refused(tmp_path):
    instances = plain()
    instances["categories"] = [{"id": 2, "name": "person"}, {"id": 3, "name": "car"}]
    of_all("annotations", category_id=lambda _: 3)(instances)
    with pytest.raises(
        DataError, match=r"category 2 is 'person' here, and 'car' in p\.json"
    ) as error:
        built(tmp_path, panoptic(tmp_path), instances)
    assert str(tmp_path / "i.json") in str(error.value)
    assert "same id" in error.value.problem.fix


def test_two_files_may_write_ids_and_sizes_differently(tmp_path):
    instances = plain()
    instances["categories"] = [{"id": "2", "name": "car"}, {"id": 3.0, "name": "person"}]
    of_all("annotations", category_id=lambda _: "2")(instances)
    of_all("images", id=str, width=str, height=lambda _: None)(instances)
    document = panoptic(tmp_path)
    of_all("annotations", image_id=float)(document)
    sample = samples(built(tmp_path, document, instances))["a"]
    assert [one.category for one in sample.instances] == [1]
    assert len(sample.segments) == 3


def test_crowds_are_counted_in_the_report(tmp_path):
    for crowds, text in (((1, 1), "all 2 objects"), ((1, 0), "1 objects")):
        document, lines = plain(), []
        for entry, crowd in zip(document["annotations"], crowds, strict=True):
            entry["iscrowd"] = crowd
        made(tmp_path / text, document, lines)
        assert [line for line in lines if line.startswith("train:")] == [
            f"train: {text} of a.json are crowds (iscrowd is 1), which training leaves out"
        ]


def test_a_file_without_objects_is_reported(tmp_path):
    document, lines = plain(), []
    document["annotations"].clear()
    made(tmp_path, document, lines)
    assert "train: a.json annotates no object" in lines


@pytest.mark.parametrize("image_id", [99, "photo", "01", 1.5, None, True, [1]])
def test_an_annotation_of_no_image_is_a_finding_and_an_error_if_strict(tmp_path, image_id):
    document = plain()
    document["annotations"].append(document["annotations"][0] | {"id": 3, "image_id": image_id})
    folder = made(tmp_path, document)
    assert {key: len(one.instances) for key, one in samples(folder).items()} == {"a": 1, "b": 1}
    (one,) = load_findings(folder)
    assert one.file == "a.json"
    assert one.code == (24 if image_id in (99, "photo", "01") else 22)
    with pytest.raises(DataError, match=f"finding {one.code}"):
        made(tmp_path, document, strict=True)


@pytest.mark.parametrize("annotation", [None, 5, "text", []])
def test_an_annotation_that_is_no_object_is_a_finding(tmp_path, annotation):
    document = plain()
    document["annotations"].insert(0, annotation)
    folder = made(tmp_path, document)
    assert list(samples(folder)) == ["a", "b"]
    assert [(one.file, one.code) for one in load_findings(folder)] == [("a.json", 22)]


def test_ids_of_annotations_may_be_text_among_numbers_for_equal_areas(tmp_path):
    document = plain()
    more = [document["annotations"][0] | {"id": id} for id in ("u-2", "a", 7, "5")]
    document["annotations"] += more
    sample = samples(made(tmp_path, document))["a"]
    in_layers = sorted(sample.instances, key=lambda one: one.layer)
    assert [one.id for one in in_layers] == [1, 5, 7, "a", "u-2"]


def test_one_bad_entry_among_two_hundred_costs_one_image(tmp_path):
    document, names = plain(), [f"{n}.png" for n in range(200)]
    entry, size = document["annotations"][0], {"width": 64, "height": 48}
    document["images"] = [{"id": n, "file_name": name} | size for n, name in enumerate(names)]
    document["annotations"] = [entry | {"id": n, "image_id": n} for n in range(200)]
    document["images"][50] = {"id": 50, "width": 64}
    document["annotations"][60] = entry | {"id": 60, "image_id": 60, "segmentation": [[1, "x"]]}
    folder = made(tmp_path, document, names=names)
    assert len(samples(folder)) == 198
    assert sorted((one.file, one.code) for one in load_findings(folder)) == [
        ("60.png", 22),
        ("a.json", 22),
    ]


def test_an_image_of_another_format_costs_one_image(tmp_path):
    document = plain()
    document["images"].append(document["images"][0] | {"id": 3, "file_name": "c.jpg"})
    folder = made(tmp_path, document, names=["a.png", "b.png", "c.jpg"])
    assert list(samples(folder)) == ["a", "b"]
    assert [(one.file, one.code) for one in load_findings(folder)] == [("c.jpg", 23)]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_found_however_its_letters_are_composed(tmp_path, forms):
    listed, stored = (unicodedata.normalize(form, "Müller/Café.png") for form in forms)
    document = plain()
    photo(file_name=listed)(document)
    folder = made(tmp_path, document, strict=True, names=[stored, "b.png"])
    assert len(samples(folder)) == 2


@pytest.mark.parametrize("name", ["my photo.png", "50%.png", "ä.png"])
def test_a_name_in_the_form_of_a_url_is_told(tmp_path, name):
    document = plain()
    photo(file_name=quote(name))(document)
    folder = made(tmp_path, document, names=[name, "b.png"])
    assert list(samples(folder)) == ["b"]
    (one,) = load_findings(folder)
    assert one.code == 7
    assert one.detail == f"{quote(name)} is missing, but the folder has {name}: correct file_name"


def test_instances_in_too_many_layers_leave_their_image_out(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.format.schema.MAX_PIXELS", 3 * 64 * 48)
    document = plain()
    for n in range(3, 6):
        document["annotations"].append(document["annotations"][0] | {"id": n})
    folder = made(tmp_path, document)
    assert list(samples(folder)) == ["b"]
    assert [(one.file, one.code) for one in load_findings(folder)] == [("a.png", 23)]


def test_a_size_that_the_file_does_not_give_is_that_of_the_displayed_image(tmp_path):
    document = plain()
    of_all("images", file_name=lambda name: name.replace("png", "jpg"))(document)
    photo(width=..., height=...)(document)
    made(tmp_path, document, names=["a.jpg", "b.jpg"])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "photos/a.jpg") as picture:
        picture.save(tmp_path / "photos/a.jpg", exif=exif)
    files = CocoFiles(tmp_path / "photos", tmp_path / "a.json")
    build("coco", files, tmp_path / "out", splits=["train"], jobs=1, report=lambda line: None)
    sample = samples(tmp_path / "out/train")["a"]
    assert (sample.width, sample.height) == (48, 64)
    assert [one.code for one in load_findings(tmp_path / "out/train")] == [4]


def test_a_polygon_that_is_cut_off_is_not_lost(tmp_path):
    document = plain()
    annotation(segmentation=[[8, 8, 99999, 8, 99999, 20, 8, 20], POLYGON], area=...)(document)
    sample = samples(made(tmp_path, document))["a"]
    assert sample.instances[0].area == 56 * 12
