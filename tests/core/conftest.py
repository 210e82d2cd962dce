"""Fixtures for the tests of the core."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off the run-time checks of annotations, so that the library's own checks are what refuses.

    jaxtyping reads the switch at every call, so it works after import and for one test alone.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
