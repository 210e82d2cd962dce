"""The project's pages as tests read them: their code, their commands, and a proof that a command is one."""

import argparse
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pvlr.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OURS = ("make", "python", "pvlr", "pip", "tensorboard", "git", "bash")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def joined(block: str) -> list[str]:
    """The lines of a block, those that end in a backslash with the next."""
    return block.replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[str]:
    """Every command of a page: the lines of its ``console`` blocks, and what stands between backticks in the text."""
    shown = [line.split("#")[0].strip() for block in blocks(page, "console") for line in joined(block)]
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    said = [line for line in re.findall(r"`([^`\n]+)`", text) if re.match(rf"(?:{'|'.join(OURS[:5])}) ", line)]
    parts = [part.strip() for line in [*shown, *said] for part in line.split("&&")]
    return [part for part in dict.fromkeys(parts) if part]


def prove(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Prove that a command is one, without its work; says how.

    ``parsed``: the command's own parser took every option and value. ``dry run``: make said what it would do.
    ``named``: what it names is there.
    """
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return "dry run"
    if words[:3] == ["python", "-m", "pytest"]:
        return "named"
    if words[0] == "torchrun":  # Its own options come before the program.
        start = next(place for place, word in enumerate(words) if word == "-m" or word.endswith(".py"))
        words = ["python", *words[start:]]
    if words[:3] == ["python", "-m", "pvlr"]:
        words = words[2:]
    if words[0] == "pvlr":
        return _prove_command(words[1:])
    if words[0] == "python":
        return _prove_script(words[1], words[2:], monkeypatch)
    if words[0] == "tensorboard":
        assert importlib.util.find_spec("tensorboard")
        assert words[1] == "--logdir"
        return "named"
    if words[0] == "pip":
        _prove_extras(words)
        return "named"
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        return "named"
    assert words[0] in ("git", "cd"), f"no proof for: {command}"
    return "named"


def _prove_command(words: list[str]) -> str:
    assert words, "the command alone"
    if words == ["--version"] or "--help" in words:
        assert main(words) == 0
        return "parsed"
    with pytest.raises(SystemExit) as stop:  # Its configuration, as it would be used: every option has been read.
        raise SystemExit(f"exit code {main([*words, '--print_config'])}")
    assert stop.value.code == 0
    return "parsed"


def _prove_script(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    path = ROOT / name
    assert path.is_file(), name
    text = path.read_text(encoding="utf-8")
    if not re.search(r"\b(?:command|script)\(", text):
        if "argparse" in text:
            return _prove_options(path, words, monkeypatch)
        assert words == []
        return "named"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *words, *(["--print_config"] if "--help" not in words else [])])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 0
    return "parsed"


def _prove_options(path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    def parsed(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        options = argparse.ArgumentParser.parse_known_args(parser)
        assert options[1] == [], options[1]
        raise SystemExit(f"parsed {parser.prog}")

    monkeypatch.setattr(sys, "argv", [path.name, *words])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(SystemExit, match=r"^parsed "):
        runpy.run_path(str(path), run_name="__main__")
    return "parsed"


def _prove_extras(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[1] == "install"
    for named in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(named.split(",")) <= set(extras), named
