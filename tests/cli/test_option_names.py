"""An option that does not exist is refused with the one that is meant, perhaps."""

from pathlib import Path

import pytest

from pvlr.cli.command import command
from pvlr.train.config import LoopConfig


def show(*, loop: LoopConfig) -> None:
    """Take a section.

    Args:
        loop: How long.
    """


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--loop.epoch", "3"],
            "error: unrecognized arguments: --loop.epoch 3; the nearest option is --loop.epochs\n",
        ),
        (["--loop.sed=3"], "error: unrecognized arguments: --loop.sed=3; the nearest option is --loop.seed\n"),
        (["--zzz"], "error: unrecognized arguments: --zzz\n"),
    ],
)
def test_the_nearest_option_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(show, words) == 2
    assert capsys.readouterr().err == message


def test_the_nearest_key_of_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("loop:\n  epoch: 3\n")
    assert command(show, ["--config", str(tmp_path / "x.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.endswith("; the nearest option is --loop.epochs\n")
    assert error.count("\n") == 1


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("loop:\n\tepochs: 3\n")
    for words in (["--config", str(path)], [f"--config={path}"]):
        assert command(show, words) == 2
        error = capsys.readouterr().err
        assert f"{path}, line 2" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"loop:\n#  epochs: 1\n", "loop: expected a section of fields and their values, found nothing"),
        (b"loop: [epochs, 4]", "loop: expected a section of fields and their values, found ['epochs', 4]"),
        (b"loop: 3", "loop: expected a section of fields and their values, found 3"),
        ("loop: é".encode("latin-1"), "expected a configuration as YAML in UTF-8, found other bytes"),
    ],
)
def test_a_section_that_is_none_is_refused(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    assert command(show, [f"--config={path}"]) == 2
    assert capsys.readouterr().err == f"error: {path}: {message}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loop.epochs=few"], "loop.epochs: expected a whole number or auto, got few"),
        (["--loop.epochs=2.5"], "loop.epochs: expected a whole number or auto, got 2.5"),
        (["--loop.precision=half"], "loop.precision: expected float32 or bf16, got half"),
        (["--loop.ema=much, more"], "loop.ema: expected a number, got much, more"),
        (["--loop.compile=maybe"], "loop.compile: expected true or false, got maybe"),
    ],
)
def test_a_value_of_another_type_is_refused_in_a_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(show, words) == 2
    assert capsys.readouterr().err == f"error: --{message}\n"
    key, _, value = words[0].removeprefix("--loop.").partition("=")
    (tmp_path / "x.yaml").write_text(f"loop:\n  {key}: {value}\n")
    assert command(show, [f"--config={tmp_path / 'x.yaml'}"]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), message in error) == (1, True)
