"""Packages that some tests need beyond the extra ``test``: skipped where they are absent, an error in CI."""

import importlib.util
import os

import pytest


def require_extra(extra: str, *modules: str) -> None:
    """Skip the calling test, or the whole calling module, where a package of an optional extra is not installed."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        message = f"no {', '.join(absent)}: pip install -e '.[{extra}]'"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message, allow_module_level=True)
