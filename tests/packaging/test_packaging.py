"""Metadata of the package: floors that are tested, versions that agree, checks that stay under ``-O``."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import pvlr

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pinned(path: Path) -> dict[str, str]:
    lines = [line.split("==") for line in path.read_text().split()]
    return {name.lower().replace("_", "-"): version for name, version in lines}


def floors(requirements: list[str]) -> dict[str, str]:
    found = {}
    for requirement in requirements:
        if re.fullmatch(r"[\w.-]+==[\d.]+", requirement):
            continue  # One release alone, whose files are known by their digests.
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=([\d.]+))?", requirement)
        assert match, requirement
        if match[1] != "pvlr" and match[2]:
            found[match[1].lower().replace("_", "-")] = match[2]
    return found


def test_the_floors_that_are_installed_for_a_test_are_those_that_are_promised() -> None:
    tested = ("clip", "data", "train", "plot", "test", "heic", "video")
    used = PROJECT["dependencies"] + [requirement for name in tested for requirement in EXTRAS[name]]
    wanted, held = floors(used), pinned(ROOT / "tests/packaging/floors.txt")
    assert sorted(wanted) == sorted(held)
    for name, floor in wanted.items():
        assert (held[name] + ".0.0").startswith(floor + "."), f"{name}: promised from {floor}, tested from {held[name]}"


def test_everything_that_is_asked_for_is_pinned() -> None:
    pins = pinned(ROOT / "constraints.txt")
    for name in EXTRAS.keys() - {"sentence"}:
        assert set(floors(EXTRAS[name])) <= set(pins), name


def test_versions_and_names_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == pvlr.__version__ == citation["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2401.17881"


def test_continuous_integration_calls_what_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    called = set(re.findall(r"make (\w+)", "\n".join(steps)))
    in_ci = set(re.findall(r"^make (\w+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert in_ci <= called
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in called | in_ci)


def test_tests_can_fail_under_python_o(tmp_path: Path) -> None:
    """pytest rewrites the asserts of tests before ``-O`` could drop them: a run under ``-O`` means something."""
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert not __debug__\n    assert False, 'seen'\n")
    words = [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    bare = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # No plugin is needed, and theirs load torch.
    done = subprocess.run([*words, str(tmp_path)], cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AssertionError: seen" in done.stdout


@pytest.mark.parametrize(
    ("part", "package"), [("data", "PIL"), ("data", "torchvision"), ("train", "open_clip"), ("train", "jsonargparse")]
)
def test_a_part_without_its_extra_says_what_to_install(part: str, package: str) -> None:
    """Import the part in a process of its own, to which the package is not there."""
    code = f"""
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == {package!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not PathFinder] + [Without()]
import pvlr.{part}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = f"ModuleNotFoundError: pvlr.{part} needs the package {package}: pip install 'pvlr[{part}]'"
    assert done.stderr.splitlines()[-1] == said


def test_the_command_that_is_installed_is_there() -> None:
    """The wheel itself is looked into by check.py, which needs the network."""
    check = runpy.run_path(str(ROOT / "tests/packaging/check.py"))
    assert {f"{name} = {place}" for name, place in PROJECT["scripts"].items()} == {check["ENTRY"]}
    module, _, function = PROJECT["scripts"]["pvlr"].partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("package", ["jsonargparse", "open_clip", "tqdm"])
def test_a_command_without_its_extra_says_what_to_install(package: str) -> None:
    code = f"""
import sys, importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == {package!r} else found(name, package)
from pvlr.cli.main import main
assert main(["--help"]) == 0
sys.exit(main(["tag", "x.jpg"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: pvlr tag needs the package {package}: pip install 'pvlr[train]'\n"


def test_each_extra_is_tried_alone() -> None:
    check = runpy.run_path(str(ROOT / "tests/packaging/check.py"))
    assert check["SMOKE"].keys() == {"", *EXTRAS}
