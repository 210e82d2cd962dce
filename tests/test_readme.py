"""Code and commands of the README and the pages of `docs`, which run as shown."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from helpers.documents import PAGES, ROOT, blocks, commands, prove
from helpers.tagging_toys import make_recognizer
from PIL import Image

from pvlr.train import data_config, train
from pvlr.train.evaluation.study import StudyConfig

README = ROOT / "README.md"
COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands(page)})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "runs/quickstart" in code:  # What the commands around it leave.
        make_recognizer(tmp_path / "tower").save_pretrained("runs/quickstart")
        Image.new("RGB", (40, 30)).save("picture.jpg")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})  # noqa: S102 - the text is this repository's own


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")], ids=lambda page: page.stem)
def test_pages_run_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = "\n".join(blocks(page, "python"))
    exec(compile(whole, page.name, "exec"), {"__name__": "page"})  # noqa: S102 - the text is this repository's own


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_one(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prove(command, monkeypatch) in ("parsed", "dry run", "named")


def test_there_are_commands_and_the_two_for_a_fresh_clone() -> None:
    assert {("README.md", "make quickstart"), ("README.md", "make test")} <= set(COMMANDS)
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "python examples/nothing.py",
        "python examples/train_voc.py --loop.nothing 2",
        "python examples/train_voc.py --loop.epochs many",
        "python examples/predict.py --nothing x",
        "pvlr nothing",
        "python -m pvlr",
        "pvlr tag --nothing x",
        "pvlr train voc --config nothing",
        "torchrun --nproc-per-node 2 -m pvlr train voc --loop.nothing 2",
        "pip install 'pvlr[nothing]'",
        "conda install pvlr",
    ],
)
def test_a_command_that_is_wrong_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        prove(command, monkeypatch)


def test_files_that_are_named_are_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        paths = re.findall(r"\b(?:examples|tests|docs|pvlr)/[\w/.-]+\.\w+", text)
        assert [path for path in paths if not (ROOT / path).is_file()] == [], page.name


def test_options_that_are_named_are_there() -> None:
    hints = inspect.get_annotations(train, eval_str=True)
    kinds = [(name, kind) for name, kind in hints.items() if dataclasses.is_dataclass(kind) and name != "return"]
    kinds += [("data", kind) for kind in vars(data_config).values() if dataclasses.is_dataclass(kind)]
    kinds.append(("study", StudyConfig))
    known = {f"{name}.{field.name}" for name, kind in kinds for field in dataclasses.fields(kind)}
    for page in PAGES:
        named = set(re.findall(r"--([a-z]+\.[a-z_]+)", page.read_text(encoding="utf-8")))
        assert named <= known, page.name


@pytest.mark.parametrize(("section", "page"), [("How well", "results"), ("How fast", "benchmarks")])
def test_measurements_told_twice_are_the_same(section: str, page: str) -> None:
    told = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    numbers = re.findall(r"\d+\.\d+", told)
    assert len(numbers) >= 4
    whole = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    assert [number for number in numbers if number not in whole] == []
