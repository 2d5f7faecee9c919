"""Fixtures for the sources with label maps: the raw data set of a test module, and its shards."""

from pathlib import Path

import pytest

from tests.shards.raw_maps import made, write


@pytest.fixture(scope="module")
def raw(request, tmp_path_factory) -> Path:
    """The data set that the generator `LAYOUT` of the test module writes."""
    layout = request.module.LAYOUT
    return write(layout, tmp_path_factory.mktemp(layout.SOURCE))


@pytest.fixture(scope="module")
def out(request, raw, tmp_path_factory) -> Path:
    """The shards of `raw`."""
    out = tmp_path_factory.mktemp("out")
    made(request.module.LAYOUT, raw, out)
    return out
