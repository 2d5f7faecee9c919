"""Shard sets that the tests of the pipeline read, built once a session."""

import shutil
from pathlib import Path

import pytest

from pipeline.data.store import Store
from shards.build.build import build
from tests.shards.raw import SAMPLE


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The CC BY sample of COCO as shard sets: train of 10 images in 3 shards, val of 5."""
    out = tmp_path_factory.mktemp("photographs")
    build("coco", SAMPLE, out, jobs=1, shards=3, report=lambda _: None)
    return out


@pytest.fixture(scope="session")
def train_set(photographs) -> Store:
    """The training part of the photographs. Not to be damaged."""
    return Store(photographs / "train")


@pytest.fixture
def spare_set(photographs, tmp_path) -> Path:
    """A copy of the training part that a test may damage."""
    return Path(shutil.copytree(photographs / "train", tmp_path / "train"))
