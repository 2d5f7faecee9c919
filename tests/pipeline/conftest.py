"""Shard sets that the tests of the pipeline read, built once per session."""

import shutil
from pathlib import Path

import pytest

from pipeline.data.store import Store
from shards.build.build import build
from tests.shards.raw import SAMPLE


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Build the CC BY sample of COCO: a train set of 10 images in 3 shards, and a val set of 5."""
    out = tmp_path_factory.mktemp("photographs")
    build("coco", SAMPLE, out, jobs=1, shards=3, report=lambda _: None)
    return out


@pytest.fixture(scope="session")
def train_set(photographs) -> Store:
    """Open the train set of the photographs, which no test may change."""
    return Store(photographs / "train")


@pytest.fixture
def spare_set(photographs, tmp_path) -> Path:
    """Copy the train set of the photographs for a test that damages it."""
    return Path(shutil.copytree(photographs / "train", tmp_path / "train"))
