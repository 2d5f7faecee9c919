"""The folder source: compare the shards of generated sets with masks composed from raw maps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.format.manifest import Manifest
from shards.sources.classes import load_classes
from tests.shards import raw_folder
from tests.shards.raw_maps import (
    assert_segments,
    findings,
    made,
    pixels,
    samples,
    save,
    segment_masks,
    semantic_labels,
    write,
)

LAYOUT = raw_folder


@pytest.mark.parametrize(("split", "count"), [("train", 3), ("val", 2)])
def test_segments_are_stuff_and_the_things_of_the_instances(raw, out, split, count):
    read = samples(out / split)
    assert len(read) == count
    for image_id, sample in read.items():
        labels, numbers = map(
            pixels, raw_folder.maps(raw, split, image_id.removeprefix(raw_folder.PREFIX))
        )
        expected = {65536 + label: (label, 0, labels == label) for label in (0, 300)}
        for number in np.unique(numbers[numbers > 0]).tolist():
            expected[number] = number // 100, 0, numbers == number
        assert_segments(sample.segments, segment_masks(sample), out / split, expected)


def test_semantic_truth_is_the_map_of_labels(raw, out):
    for image_id, sample in samples(out / "train").items():
        labels = pixels(raw_folder.maps(raw, "train", image_id.removeprefix(raw_folder.PREFIX))[0])
        ours = semantic_labels(sample, out / "train")
        assert np.array_equal(ours, np.where(labels == 255, -1, labels))
        assert (labels == 255).any()


def test_classes_and_licence_are_those_of_the_yaml(out):
    manifest = Manifest.load(out / "train")
    assert manifest.taxonomy.name == "cells"
    assert [(c.id, c.name) for c in manifest.taxonomy.categories] == [
        *((0, "glass"), (3, "cell"), (7, "nucleus"), (300, "edge")),
    ]
    assert manifest.taxonomy.categories[2].color == (200, 30, 60)
    assert manifest.licence[0]["name"] == "CC BY 4.0"
    for sample in samples(out / "train").values():
        assert sample.rights["licence"] == "https://creativecommons.org/licenses/by/4.0/"
        assert sample.rights["attribution"] == "Us"


def test_an_instance_is_on_one_thing_class(tmp_path):
    write(raw_folder, tmp_path / "raw")
    for name, labels in (("train0", (0,)), ("train1", (3, 7)), ("train2", (255,))):
        values, numbers = map(pixels, raw_folder.maps(tmp_path / "raw", "train", name))
        for label in labels:
            numbers[values == label] = 5000
        save(raw_folder.maps(tmp_path / "raw", "train", name)[1], numbers.astype(np.uint16))
    raw_folder.write(tmp_path / "raw", "train", "good", 9)
    made(raw_folder, tmp_path / "raw", tmp_path / "out")
    bad = [(f"plate.1/train{n}.png", 13) for n in range(3)]
    assert findings(tmp_path / "out/train") == bad
    text = (tmp_path / "out/train/findings.jsonl").read_text()
    assert text.count("5000 of train0.png is on a class that is not a thing") == 1
    assert text.count("5000 of train1.png is on several classes") == 1


def test_the_documented_classes_are_read(tmp_path):
    document = (Path(__file__).parents[3] / "docs/folder.md").read_text()
    (classes,) = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    picture = tmp_path / "raw/images/test/a.bmp"
    save(picture, np.zeros((4, 6, 3), np.uint8))
    save(tmp_path / "raw/labels/test/a.png", np.array([[0, 1, 2, 255, 2, 2]] * 4, np.uint8))
    (tmp_path / "raw/classes.yaml").write_text(classes)
    lines = made(raw_folder, tmp_path / "raw", tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out/test")
    assert manifest.taxonomy.names == ("background", "cell", "nucleus")
    assert manifest.tasks == ("semantic",)
    assert any(
        "does not serve panoptic because 1 of 1 images have no instances" in line for line in lines
    )
    assert samples(tmp_path / "out/test")["a"].semantic.tolist() == [[1, 2, 3, 0, 3, 3]] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [{id: 0}]", r"classes\[0\].*name"),
        ("classes: [{id: 0, name: a, ising: true}]", r"classes\[0\].*ising"),
        ("classes: [{id: x, name: a}]", r"classes\[0\].*'x'"),
        ("classes: [{id: 0, name: a, color: [1, 2]}]", r"classes\[0\].color has 2 entries, not 3"),
        ("classes: [{id: 0, name: a, color: [1, 2, 256]}]", r"\[1, 2, 256\] is not three"),
        ("classes: [{id: 0, name: no}]", r"classes\[0\].name is false, not a text.*quotes"),
        ("classes: [{id: 0, name: 3.10}]", r"classes\[0\].name is 3.1, not a text"),
        ("classes: [{id: 10000000000000000000000, name: a}]", r"not a whole number of 64 bits"),
        ("classes: [{id: 010, name: a}]", r"010 is not a decimal integer"),
        ("classes: [{id: 0x10, name: a}]", r"0x10 is not a decimal integer"),
        ("classes: [{id: 0, name: 12:30}]", r"12:30 is not a decimal integer; a text needs quotes"),
        ("classes: [{id: 0, name: a}, {id: 1, name: a}]", r"class name 'a' occurs twice"),
        ("classes: [{id: 0, name: a, name: b}]", r"name occurs twice in a mapping"),
        ("classes: [{id: 0, name: a}]\nclasses: [{id: 1, name: b}]", r"classes occurs twice"),
        ("classes: [{id: 0, name: ' '}]", r"class name ' ' is empty"),
        ('classes: [{id: 0, name: "a\\e[2J"}]', r"has control characters"),
        ("classes: [{id: 0, name: on}]", r"classes\[0\].name is true, not a text"),
        ("classes: [{id: 0, name: ~}]", r"classes\[0\].name is null, not a text"),
        ("classes: [{id: 0, name: 2024-01-02}]", r"classes\[0\].name is .*, not a text"),
        (f"classes: [{{id: {'1' * 5000}, name: a}}]", r"invalid YAML"),
        ("classes: &a [{id: 0, name: b}]\nignored: *a", r"an alias .* is not supported"),
        ("classes: " + "[" * 5000, r"invalid YAML"),
        ('classes: [{id: 0, name: "\\uD800"}]', r"invalid YAML|not Unicode"),
        ("classes: [{id: 0, name: a}, {id: 0, name: b}]", r"0 occurs twice"),
        ("classes: []", r"empty"),
        ("classes: [{id: 0, name: a}]\nignored: [0]", r"0 is a class and also ignored"),
        ("klasses: []", r"klasses"),
        ("ignored: [1]", r"classes"),
        ("classes: [", r"invalid YAML"),
        ("classes: 3", r"classes is 3, not a list"),
        ("", r"the value is null, not a mapping"),
    ],
)
def test_a_wrong_list_of_classes_is_refused(text, message, tmp_path):
    write(raw_folder, tmp_path / "raw")
    (tmp_path / "raw/classes.yaml").write_text(text)
    with pytest.raises(DataError, match=rf"classes\.yaml.*{message}"):
        made(raw_folder, tmp_path / "raw", tmp_path / "out")


def test_names_in_quotes_are_kept_as_they_are(tmp_path):
    names = ["no", "on", "3.10", "010", "~", "1:30", "Straße 🚗"]
    rows = [f'- {{id: {n}, name: "{name}"}}' for n, name in enumerate(names)]
    for text in (
        "\n".join(["classes:", *rows]),
        json.dumps({"classes": [{"id": n, "name": name} for n, name in enumerate(names)]}),
    ):
        (tmp_path / "classes.yaml").write_text(text)
        assert load_classes(tmp_path / "classes.yaml")[0].names == tuple(names)


def test_a_list_of_classes_is_never_interpolated(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text(
        'classes: [{id: 0, name: "\\x24{oc.env:HOME}"}]\nlicence: {name: "${oc.env:HOME}"}'
    )
    taxonomy, _, licence = load_classes(path)
    assert taxonomy.names == ("${oc.env:HOME}",)
    assert licence == {"name": "${oc.env:HOME}"}


def test_nested_aliases_are_not_expanded(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "classes.yaml"
    path.write_text("\n".join([*lines, "classes: *a9"]))
    with pytest.raises(DataError, match="an alias"):
        load_classes(path)


def test_without_a_list_of_classes_the_document_is_named(tmp_path):
    write(raw_folder, tmp_path / "raw")
    (tmp_path / "raw/classes.yaml").unlink()
    with pytest.raises(DataError, match=r"docs/folder\.md"):
        made(raw_folder, tmp_path / "raw", tmp_path / "out")


def test_a_list_of_classes_under_another_name_is_named(tmp_path):
    (tmp_path / "classes.yml").write_text("classes: [{id: 0, name: a}]")
    with pytest.raises(DataError, match=r"rename classes\.yml"):
        load_classes(tmp_path / "classes.yaml")


def test_a_change_of_the_classes_makes_the_shards_again(tmp_path):
    write(raw_folder, tmp_path / "raw")
    made(raw_folder, tmp_path / "raw", tmp_path / "out")
    assert all("already" in line for line in made(raw_folder, tmp_path / "raw", tmp_path / "out"))
    path = tmp_path / "raw/classes.yaml"
    path.write_text(path.read_text().replace("ignored: [255]", "ignored: [255, 9]"))
    assert any("older build" in s for s in made(raw_folder, tmp_path / "raw", tmp_path / "out"))
