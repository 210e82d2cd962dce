"""Pictures as a command line may name them."""

import errno
import glob
import inspect
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvlr.data.batch import DataError
from pvlr.data.sources import picture_paths, why_left_out


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
    ("pattern", "expected"),
    [
        ("a/**/*.png", ["a/b/1.png"]),
        ("**/*.png", ["a/b/1.png"]),
        ("./**/1.*", ["./a/b/1.png"]),
        ("**", ["a/10.JPEG", "a/2.jpg", "a/b/1.png", "a/b/note.txt", "c.webp", "d[1].gif"]),
        ("a/*/*.png", ["a/b/1.png"]),
        ("a/loop/*.jpg", ["a/loop/2.jpg"]),  # A link that is named is followed.
        ("[!c]/**/**/*.jpg", ["a/2.jpg"]),
        (".h*/*.png", [".hidden/x.png"]),
        ("*/link.png", ["a/link.png"]),
        ("c.webp/*.jpg", []),
        ("{here}/a/*.jpg", ["{here}/a/2.jpg"]),
    ],
)
def test_patterns_leave_links_to_folders_out(pattern: str, expected: list[str], folder: Path) -> None:
    for name in ("loop", "again"):
        (folder / "a" / name).symlink_to(folder / "a")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").touch()
    if "link" in pattern:
        (folder / "a" / "link.png").symlink_to(folder / "a" / "b" / "1.png")
    here = str(folder)
    if expected:
        found = list(picture_paths([pattern.replace("{here}", here)]))
        assert found == [path.replace("{here}", here) for path in expected]
    else:
        with pytest.raises(DataError, match="it matches none"):
            list(picture_paths([pattern]))


@pytest.mark.parametrize("pattern", ["**/*.jpg", "*/*.jpg", "*.webp", "a/**/[1-9].*", "**/b/*"])
def test_patterns_mean_what_python_s_own_mean(pattern: str, folder: Path) -> None:
    expected = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    assert expected
    assert list(picture_paths([pattern])) == expected


def test_a_picture_is_one_however_it_is_spelt(folder: Path) -> None:
    assert list(picture_paths(["a/2.jpg", "./a/2.jpg", "a//2.jpg", "a/./2.jpg"])) == ["a/2.jpg"]
    # What lies above a link is not where its name says.
    (folder / "e").mkdir()
    (folder / "e" / "2.jpg").touch()
    (folder / "a" / "link").symlink_to(folder / "e", target_is_directory=True)
    (folder / "e" / "inner").mkdir()
    (folder / "into").symlink_to(folder / "e" / "inner")
    assert list(picture_paths(["2.jpg", "into/../2.jpg"])) == ["2.jpg", "into/../2.jpg"]


def test_folders_deeper_than_functions_call_each_other(folder: Path) -> None:
    deep = Path("a/b").joinpath(*["d"] * 300)  # Fewer than usual, since pytest deletes them by such calls.
    deep.mkdir(parents=True)
    (deep / "x.png").touch()
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        assert list(picture_paths(["a/b"])) == ["a/b/1.png", str(deep / "x.png")]
        assert list(picture_paths(["a/b/**/*.png"])) == ["a/b/1.png", str(deep / "x.png")]
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("name", ["a", "a/**/*.png", "a/b/*.png"])
def test_a_folder_that_cannot_be_read_is_not_passed_over(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"^a/b: expected a folder, but Permission denied$"):
        list(picture_paths([name]))


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


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("x.jpg~", b"\xff\xd8\xff\xe0", "JPEG without such an ending; rename it, or name it by itself"),
        ("x.dat", b"RIFF\x10\0\0\0WEBPVP8 ", "WEBP without such an ending; rename it, or name it by itself"),
        ("x", b"\xff\x0a", "JPEG XL; convert it to JPEG or PNG"),
        ("x.jxl", b"", "JXL; convert it to JPEG or PNG"),
        ("x.NEF", b"MM\0*", "NEF; convert it to JPEG or PNG"),
        ("x.mp4", b"\0\0\0\x20ftypisom", "a video; name it by itself to tag its key frames"),
        ("x", b"\x1a\x45\xdf\xa3", "a video; name it by itself to tag its key frames"),
        (".x.jxl", b"", None),
        ("x.m4a", b"\0\0\0\x20ftypM4A ", None),
        ("x.txt", b"BM stands for nothing", None),
        ("x.csv", b"file,labels", None),
        ("x", b"", None),
    ],
)
def test_pictures_of_other_endings_or_formats_are_told_from_other_files(
    name: str, content: bytes, found: str | None, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    reason = why_left_out(path)
    assert (reason is None) == (found is None)
    assert reason is None or reason.startswith(f"{path}: expected a picture")
    assert reason is None or reason.endswith(f"found {found}")
    (tmp_path / "a.png").touch()
    told: list[tuple[str, str]] = []
    assert list(picture_paths([str(tmp_path)], left_out=lambda *one: told.append(one))) == [str(tmp_path / "a.png")]
    assert told == ([] if reason is None else [(str(path), reason)])


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jxl")
    assert why_left_out(tmp_path / "x.jxl") is None
    assert why_left_out(tmp_path / "gone.jxl") is None


def test_a_name_in_a_reason_is_printable(tmp_path: Path) -> None:
    (tmp_path / "a\x1b.jxl").touch()
    assert "\\x1b.jxl" in str(why_left_out(tmp_path / "a\x1b.jxl"))
