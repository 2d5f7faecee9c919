"""Shard sets and the run that nothing happened to."""

from pathlib import Path

import pytest

from tests.jobs import small


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The CC BY sample of COCO as shard sets. Not to be damaged."""
    return small.photographs(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> Path:
    """The folder of the small run, trained in one go. Not to be changed."""
    return small.trained(tmp_path_factory.getbasetemp())[0]
