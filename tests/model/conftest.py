"""Fixtures of the model's tests."""

from collections.abc import Iterator

import pytest

from model import kernels


@pytest.fixture(params=["", "reference"], ids=["kernels", "reference"])
def with_and_without_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with the implementations for this device, and again in plain torch."""
    with kernels.use(request.param):
        yield
