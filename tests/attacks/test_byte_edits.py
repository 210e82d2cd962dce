"""Damaged files of every format: read or refused by the project's own error, in bounded time and memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from byte_edits import FORMATS, Format, edited, try_edits

SCRIPT = Path(__file__).with_name("byte_edits.py")
EDITS = 300


def test_thousands_of_edits_end_in_data_or_a_data_error() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), str(EDITS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(rf"^\| (\w+) \| {EDITS} \| (\d+) \| (\d+) \|", done.stdout, flags=re.MULTILINE)
    assert [title for title, *_ in rows] == list(FORMATS)
    for title, read, refused in rows:
        # Edits that all were refused, or none, would say nothing.
        assert int(read) >= 10, title
        assert int(refused) >= 10, title


@pytest.mark.parametrize("title", FORMATS)
def test_the_files_are_valid_before_they_are_edited(title: str, tmp_path: Path) -> None:
    form = FORMATS[title]
    for content in form.files:
        path = tmp_path / f"edited.{form.ending}"
        path.write_bytes(content)
        form.read(path)


def test_edits_are_functions_of_their_number() -> None:
    content = bytes(range(200))
    assert edited(content, 3) == edited(content, 3) != edited(content, 4)
    assert sum(edited(content, seed) != content for seed in range(100)) > 95


def test_an_error_of_another_kind_is_noticed(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise IndexError("out of range")

    with pytest.raises(RuntimeError, match="edit 7 of bin: an error of another kind"):
        try_edits(Format((b"abc",), "bin", fails), 3, tmp_path, first=7)
