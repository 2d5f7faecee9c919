"""Shard sets for the tests of clusters."""

from pathlib import Path

import pytest

from tests.jobs import small


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The CC BY sample of COCO as shard sets. Tests must not change it."""
    return small.photographs(tmp_path_factory.getbasetemp())
