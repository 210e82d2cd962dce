"""Parts that readers share: the content of a path, the names that are taken, the messages."""

import errno
import os
import pickle
from pathlib import Path

import pytest

from pvlr.data.batch import DataError, MachineError
from pvlr.data.readers import entries
from pvlr.data.readers.entries import Entry, kind_at, read_text, require_files, require_name, shown_keys


def test_what_lies_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    found = {name: kind_at(tmp_path / name, "a table") for name in ("file", "link", ".", "pipe", "none", "file/below")}
    pipe, none = "a pipe, socket or device", "no such file"
    assert found == {
        "file": "a file", "link": "a file", ".": "a folder", "pipe": pipe, "none": none, "file/below": none,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, DataError), (errno.EIO, MachineError), (errno.ESTALE, MachineError)]
)
def test_a_folder_that_nobody_may_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[DataError]
) -> None:
    def refuse(path: Path) -> os.stat_result:
        raise OSError(number, os.strerror(number), path)

    path = tmp_path / "a.jpg"
    monkeypatch.setattr(entries.os, "stat", refuse)
    with pytest.raises(DataError) as caught:
        require_files([Entry("x.csv: line 2", "a.jpg", path, ())], tmp_path)
    assert type(caught.value) is kind
    assert str(caught.value) == f"{path}: expected the picture of x.csv: line 2, but {os.strerror(number)}"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="expected a table, but "):
        read_text(tmp_path / name, "a table", 10)


def test_folders_and_pipes_are_no_texts(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: expected a table, found a pipe, socket or device"):
        read_text(tmp_path / "pipe", "a table", 10)
    with pytest.raises(DataError, match="expected a table, found a folder"):
        read_text(tmp_path, "a table", 10)


@pytest.mark.parametrize("letter", ["\n", "\x1b", "\x7f", "\x85", "\x9b", "\u200e", "\u2028", "\u2029", "\u202e"])
def test_signs_that_command_are_in_no_name(letter: str) -> None:
    with pytest.raises(
        DataError, match=r"^x: expected the name of a label without control characters, found "
    ) as caught:
        require_name("x", "a label", f"a{letter}b")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["3.04\u202fPM", "a\xa0b", "\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f469"])
def test_signs_that_languages_are_written_with_are_in_names(name: str) -> None:
    assert require_name("x", "a label", name) == name


def test_messages_obey_no_name_and_keep_their_lines() -> None:
    error = DataError("a\x1b[31m\n\x9b\u202e\udcff.jpg: expected a picture", "é ü 猫")
    for told in (error, pickle.loads(pickle.dumps(error))):  # noqa: S301
        assert str(told) == "a\\x1b[31m\\n\\x9b\\u202e\\udcff.jpg: expected a picture\né ü 猫"
    again = str(DataError(f"{DataError(chr(10))}"))
    assert again == "\\n", "what is told is not told twice"


def test_few_keys_are_shown() -> None:
    assert len(shown_keys("x" * 1_000 for _ in range(10_000))) < 600
