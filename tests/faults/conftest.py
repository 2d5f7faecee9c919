"""An uninterrupted run."""

from pathlib import Path

import pytest

from tests.jobs import small


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> Path:
    """Return the folder of the small run, uninterrupted; tests must not change it."""
    return small.trained(tmp_path_factory.getbasetemp())[0]
