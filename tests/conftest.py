"""Fixtures every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

# Asserts of helpers are kept under `python -O` too, as those of tests are.
pytest.register_assert_rewrite(
    *(f"helpers.{name}" for name in ("documents", "processes", "strategies", "weight_files"))
)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the repository: skipped where absent, an error where it must be there."""
    path = Path(os.environ.get("PVLR_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        message = f"no real data at {path} (set PVLR_SHARED)"
        if os.environ.get("PVLR_REQUIRE_SHARED") == "1":
            pytest.fail(message + ", and PVLR_REQUIRE_SHARED says that it must be there")
        pytest.skip(message)
    return path


@pytest.fixture(autouse=True)
def _same_seed_every_test() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off the run-time checks of annotations, so that the library's own checks are what refuses.

    jaxtyping reads the switch at every call, so it works after import and for one test alone.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tower of random weights, as a folder that open_clip reads; a test that changes a file puts it back."""
    from helpers.tower_models import write_folder

    folder = tmp_path_factory.mktemp("tower")
    write_folder(folder, "vit")
    return folder
