"""What a command line may name as pictures."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvlr.data.batch import DataError
from pvlr.data.sources import picture_paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a/2.jpg", "a/10.JPEG", "a/b/1.png", "a/b/note.txt", "c.webp", "d[1].gif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], ["a/10.JPEG", "a/2.jpg", "a/b/1.png"]),
        (["a/b/1.png", "a"], ["a/b/1.png", "a/10.JPEG", "a/2.jpg"]),
        (["a/**/*.png"], ["a/b/1.png"]),
        (["*.webp", "c.webp"], ["c.webp"]),
        (["d[1].gif"], ["d[1].gif"]),  # A name with a pattern's letters, and there is such a file.
        (["a/b/note.txt"], ["a/b/note.txt"]),  # Named by itself: to be refused by whoever reads it.
        (["gone.jpg"], ["gone.jpg"]),
    ],
)
def test_each_picture_once_in_order(names: list[str], expected: list[str], folder: Path) -> None:
    assert list(picture_paths(names)) == expected


def test_standard_input_is_a_path_a_line(folder: Path) -> None:
    lines = io.BytesIO(b"c.webp\r\n\na b.jpg\nodd\xff.jpg\nc.webp\nlast.png")
    found = list(picture_paths(["-"], lines))
    assert found == ["c.webp", "a b.jpg", os.fsdecode(b"odd\xff.jpg"), "last.png"]


def test_lines_are_read_as_they_are_needed(folder: Path) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"c.webp\n"

    assert next(picture_paths(["-"], endless())) == "c.webp"


def test_links_in_a_circle_end(folder: Path) -> None:
    (folder / "a" / "loop").symlink_to(folder / "a")
    assert len(list(picture_paths(["a"]))) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["*.tif"], r"\*\.tif: expected a pattern of picture files, it matches none"),
        (["-"], "-: expected standard input to read paths from, got none"),
        (["empty"], r"empty: expected a folder with pictures \(\.jpg, .*\), found none"),
    ],
)
def test_what_names_nothing_is_refused(names: list[str], message: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        list(picture_paths(names))
