"""Packages and programs that some tests need beyond the extra ``test``: skipped where absent, an error in CI."""

import importlib.util
import os
import shutil

import pytest


def require_extra(extra: str, *modules: str) -> None:
    """Skip the calling test, or the whole calling module, where a package of an optional extra is not installed."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        _without(f"no {', '.join(absent)}: pip install -e '.[{extra}]'")


def require_program(name: str) -> None:
    """Skip the calling test where a program is not installed."""
    if shutil.which(name) is None:
        _without(f"no {name}: apt-get install {name}")


def _without(message: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)
