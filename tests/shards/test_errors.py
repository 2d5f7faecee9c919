"""Errors as data: parts, text, another location, and the trip to another process."""

import copy
import pickle

import pytest

from shards.doctor import RULES, Finding, Reject
from shards.errors import DataError, Failed, M2FError, Problem, UsageError

PARTS = {"where": "a.tar", "fix": "build the set again"}


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("is missing"), "is missing"),
        (Problem("is missing", "a.tar"), "a.tar: is missing"),
        (Problem("is missing", fix="copy it"), "is missing; copy it"),
        (Problem("is missing", "a.tar", "copy it"), "a.tar: is missing; copy it"),
    ],
)
def test_a_problem_reads_where_what_fix(problem, text):
    assert str(problem) == text


@pytest.mark.parametrize(("kind", "code"), [(DataError, 3), (UsageError, 2), (Failed, 1)])
def test_an_error_keeps_its_parts_and_has_an_exit_code(kind, code):
    error = kind("has 3 bytes, not 4", **PARTS)
    assert error.problem == Problem("has 3 bytes, not 4", "a.tar", "build the set again")
    assert str(error) == "a.tar: has 3 bytes, not 4; build the set again"
    assert error.exit_code == code
    assert isinstance(error, M2FError)


def test_another_location_replaces_the_first_and_leaves_the_original_alone():
    error = DataError("is damaged", **PARTS)
    moved = error.at("s3://sets/a.tar")
    assert type(moved) is DataError
    assert str(moved) == "s3://sets/a.tar: is damaged; build the set again"
    assert str(error) == "a.tar: is damaged; build the set again"


@pytest.mark.parametrize("kind", [DataError, UsageError, Failed])
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_pickling_with_its_parts_and_notes(kind, duplicate):
    error = kind("is damaged", **PARTS)
    error.add_note("in work")
    twin = duplicate(error)
    assert type(twin) is kind
    assert twin.problem == error.problem
    assert twin.args == error.args
    assert twin.__notes__ == ["in work"]


def test_a_reject_survives_pickling_with_its_finding():
    reject = Reject(3, "the image is 5x5, its truth 32x24")
    reject.add_note("in load")
    twin = pickle.loads(pickle.dumps(reject)).at("a.jpg")
    assert type(twin) is Reject
    assert twin.of("a.jpg") == Finding("a.jpg", 3, "the image is 5x5, its truth 32x24")
    assert str(twin) == f"a.jpg: the image is 5x5, its truth 32x24 (finding 3, {RULES[3].name})"
    assert twin.__notes__ == ["in load"]
