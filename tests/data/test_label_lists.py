"""Labels as a command line names them: lists that come along, files, names with commas."""

import re
from pathlib import Path

import pytest

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError
from pvlr.data.label_lists import LISTS, labels_of, require_apart
from pvlr.data.readers.voc import VOC_LABELS


@pytest.mark.parametrize(
    ("name", "count", "some"), [("voc", 20, "sofa"), ("coco", 80, "hair drier"), ("imagenet", 1000, "tench")]
)
def test_lists_that_come_along(name: str, count: int, some: str) -> None:
    labels = labels_of(name)
    assert len(labels) == count
    assert some in labels
    assert len({text.lower() for text in labels.texts}) == count  # No two sound the same.
    assert set(LISTS) == {"voc", "coco", "imagenet"}
    assert labels_of("voc") == VOC_LABELS


def test_names_with_commas_and_names_in_a_file(tmp_path: Path) -> None:
    assert labels_of(" cat, traffic light ,x").names == ("cat", "traffic light", "x")
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\n\r\n  salt, pepper  \nBaum 🌳\n".encode())
    assert labels_of(f"@{path}").names == ("cat", "salt, pepper", "Baum 🌳")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected one label a line, found none"),
        (b"\n \n", "expected one label a line, found none"),
        (b"cat\ndog\ncat\n", "line 3: expected each label once, 'cat' is in line 1 too"),
        (b"cat\n\xff\xfe\n", "line 2: expected a file of labels, one a line in UTF-8, found other bytes"),
        (b"a\tb\n", "expected a text without control characters, got 'a\\tb'"),
    ],
)
def test_a_file_of_labels_is_refused_by_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}: {message}')}$"):
        labels_of(f"@{path}")


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a file of labels, one a line, but No such file"):
        labels_of(f"@{tmp_path}/none.txt")
    for text in ("", "cat,", ",", "a,,b"):
        with pytest.raises(
            LabelError, match="expected names with commas between, @FILE with one a line, or one of voc,"
        ):
            labels_of(text)
    with pytest.raises(LabelError, match=r"^labels: expected unique labels, got 'cat' more than once"):
        labels_of("cat, cat")
    path = tmp_path / "mine.TXT"
    assert labels_of(str(path)).names == (str(path),), "a name like any other while there is no such file"
    path.write_text("cat")
    message = f"labels: expected names with commas between, got the file '{path}'; @{path} reads its lines"
    with pytest.raises(LabelError, match=f"^{re.escape(message)}$"):
        labels_of(str(path))


def test_a_name_that_holds_a_comma_is_never_taken_apart_unnoticed() -> None:
    message = (
        "labels: expected names without quotes, got '\"salt, pepper\", cat'; names that hold commas are read from "
        "@FILE, one a line"
    )
    with pytest.raises(LabelError, match=f"^{re.escape(message)}$"):
        labels_of('"salt, pepper", cat')
    known = LabelSet(("salt, pepper", "cat"))
    message = "labels: expected names with commas between, found 'salt, pepper', which is one label of the model"
    for text in ("salt, pepper", "cat,salt ,pepper", "salt,pepper, cat"):
        with pytest.raises(LabelError, match=f"^{message}"):
            require_apart(text, known)
    for text in ("salt, cat", "pepper, salt", "@salt, pepper", "coco"):
        require_apart(text, known)
