"""Class names are matched in the spellings of their publishers, and never by a guess."""

import random

import pytest

from shards.format.published import match_names, published_order
from shards.format.taxonomy import Category, Taxonomy
from tests.shards.official import OFFICIAL, is_same


@pytest.mark.parametrize("data_set", OFFICIAL)
def test_the_tables_have_the_official_order(data_set):
    official = OFFICIAL[data_set]
    shuffled = random.Random(0).sample(official.names, len(official.names))
    found, names = published_order(shuffled)
    assert found == data_set
    assert all(map(is_same, names, official.names))
    assert published_order(official.names[:-1]) is None
    assert published_order([*official.names, "another"]) is None


@pytest.mark.parametrize("data_set", OFFICIAL)
def test_all_official_spellings_are_equal(data_set):
    official = OFFICIAL[data_set]
    _, ours = published_order(official.names)
    identity = list(range(len(ours)))
    spellings = [official.names, official.synonyms]
    spellings.append([name.replace(", ", ";") for name in official.synonyms])
    spellings.append([name.split(",")[0] for name in official.synonyms])
    spellings.append([name.upper().replace(" ", "_") for name in official.names])
    for names in spellings:
        assert match_names(names, ours) == identity
        assert match_names(ours, names) == identity
        backwards = list(reversed(names))
        assert match_names(backwards, ours) == identity[::-1]


@pytest.mark.parametrize("data_set", OFFICIAL)
def test_a_part_of_a_published_data_set_is_found_in_it(data_set):
    official = OFFICIAL[data_set]
    _, things = published_order(official.instance)
    rows = match_names(official.synonyms, things)
    assert rows == official.things
    assert match_names(things, official.names) == [
        official.things.index(index) if index in official.things else None
        for index in range(len(official.names))
    ]


def test_equal_names_of_two_published_data_sets_are_matched():
    """Their spellings stay apart: "plane" of ADE20K is not known to be "airplane" of COCO."""
    vistas, cityscapes, coco, ade20k = (
        OFFICIAL[name].names for name in ("vistas", "cityscapes", "coco", "ade20k")
    )
    rows = match_names(vistas, cityscapes)
    found = {cityscapes[n]: vistas[row] for n, row in enumerate(rows) if row is not None}
    assert found["road"] == "Road"
    assert all(name == other.lower() for name, other in found.items())
    rows = match_names(ade20k, coco)
    assert rows[coco.index("person")] == 12
    assert rows[coco.index("airplane")] is None


def test_names_are_equal_except_for_case_spaces_and_hyphens():
    assert match_names(["b c", "A"], ["a", "B-C", "d"]) == [1, 0, None]
    assert match_names(["building, edifice"], ["building"]) == [None]  # not a published list
    assert match_names(["straße", "ﬁeld"], ["STRASSE", "field"]) == [0, 1]


def test_ambiguous_names_are_not_matched():
    assert match_names(["a", "a"], ["a", "b"]) == [None, None]
    assert match_names(["a", "a"], ["a", "a"]) == [0, 1]  # the lists are the same
    assert match_names(["Car", "car"], ["car", "Car"]) == [1, 0]
    assert match_names(["CAR", "car"], ["car", "Car"]) == [1, None]
    names = list(OFFICIAL["ade20k"].synonyms)
    names[13] = "ground"  # "earth, ground" or "land, ground, soil"
    _, ours = published_order(OFFICIAL["ade20k"].names)
    rows = match_names(names, ours)
    assert rows[13] is None
    assert rows[94] == 94


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (("a", "b", "c"), ""),
        (("a", "c", "b"), "they are in another order, class 1 is 'b' and 'c'"),
        (("a", "b"), "3 and 2 of them, only the first has c"),
        (("a", "b", "d"), "only the first has c, only the second has d"),
    ],
)
def test_the_difference_of_two_label_spaces_is_told(other, text):
    def taxonomy(name, names, thing=(), first=0):
        rows = enumerate(names, start=first)
        return Taxonomy(name, tuple(Category(i, n, n in thing, (i, i, i)) for i, n in rows))

    first = taxonomy("one", "abc")
    assert first.difference(taxonomy("another", other, first=5)) == text
    for names in ("abc", "cab"):
        assert first.difference(taxonomy("one", names, "b")) == "'b' is a thing only in the second"
    twice = taxonomy("one", "aa")
    assert twice.difference(taxonomy("two", "aa")) == ""
