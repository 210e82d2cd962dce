import sys
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pvlr.data.batch import DataError
from pvlr.data.readers.table import read_table
from pvlr.data.readers.tables import workbook

openpyxl = pytest.importorskip("openpyxl", reason="pip install 'pvlr[xlsx]'")


def write(folder: Path, *sheets: tuple[str, list[tuple[Any, ...]]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets:
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(folder / "mine.xlsx")
    return folder / "mine.xlsx"


def test_a_list(tmp_path: Path) -> None:
    rows = [
        ("file", "labels", "split", None),
        ("1.jpg", "cat; dog", "train"),
        ("b/2.jpg", None, "train"),
        (3, "elk", "test"),
    ]
    path = write(tmp_path, ("Tabelle1", rows))
    data = read_table(tmp_path, path, suffix=".jpg", check_files=False)
    assert (data.labels.names, data.identifiers) == (("cat", "dog", "elk"), ("1.jpg", "b/2.jpg", "3.jpg"))
    assert data.target.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert len(read_table(tmp_path, path, split="train", check_files=False)) == 2


def test_a_wide_table_of_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, ("x", [("file", "cat", "dog"), ("1.jpg", 1, 0), ("2.jpg", None, 1), ("3.jpg", True, 0.5)]))
    marks: Any = {"1": "present", "0": "absent", "": "unknown"}
    with pytest.raises(DataError, match=r"row 4: expected 'cat' to be one of '1', '0', '', found 'True'; the cells"):
        read_table(tmp_path, path, label_columns="others", marks=marks, check_files=False)
    marks |= {"True": "present", "0.5": "unknown"}
    data = read_table(tmp_path, path, label_columns="others", marks=marks, check_files=False)
    assert data.known.tolist() == [[True, True], [False, True], [True, False]]
    assert data.target.tolist() == [[1, 0], [0, 1], [1, 0]]


HEAD = ("file", "labels")


@pytest.mark.parametrize(
    ("sheets", "options", "message"),
    [
        ([("a", [HEAD]), ("b", [])], {}, "expected one sheet, found 'a', 'b'; choose one with sheet"),
        ([("a", [HEAD]), ("b", [])], {"sheet": "c"}, "expected the sheet 'c', found 'a', 'b'"),
        ([("a", [HEAD]), ("b", [])], {"sheet": "b"}, "expected a table, found an empty sheet"),
        ([("a", [HEAD])], {}, "expected at least one row, found none"),
        ([("a", [("name", "tags")])], {}, "row 1: expected the columns 'file' and 'labels', found 'name', 'tags'; say"),
        ([("a", [(*HEAD, "file")])], {}, "row 1: expected every column once, found 'file' twice"),
        ([("a", [HEAD, (), ("1.jpg", "cat")])], {}, "row 2: expected a row, found an empty one"),
        ([("a", [HEAD, ("1.jpg", "cat", "dog")])], {}, "row 2: expected 2 values, one per column, found 3"),
        ([("a", [HEAD, ("../1.jpg", "cat")])], {}, "row 2: expected a picture inside its folder, found '../1.jpg'"),
        ([("a", [HEAD, ("1.jpg", "cat"), ("1.jpg", date(2026, 1, 2))])], {}, "row 3: expected every picture once"),
    ],
)  # fmt: skip
def test_sheets_that_are_refused(tmp_path: Path, sheets: list[Any], options: dict[str, Any], message: str) -> None:
    path = write(tmp_path, *sheets)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path, path, check_files=False, **options)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_files_that_are_no_workbooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.xlsx"
    with pytest.raises(DataError, match=r"x\.xlsx: expected a table, but No such file or directory"):
        read_table(tmp_path, path)
    path.write_text("file,labels\n")
    with pytest.raises(DataError, match=r"x\.xlsx: expected a workbook of Excel, but File is not a zip file"):
        read_table(tmp_path, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(DataError, match=r"x\.xlsx: expected a workbook of Excel, but "):
        read_table(tmp_path, path)
    whole = write(tmp_path, ("a", [HEAD, ("1.jpg", "cat")]))
    content = whole.read_bytes()
    for cut in range(20, len(content), 97):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"x\.xlsx: expected "):
            read_table(tmp_path, path)
    monkeypatch.setattr(workbook, "MAX_TABLE_BYTES", 3_000)
    with pytest.raises(DataError, match=r"mine\.xlsx: expected a table of at most 3,000 bytes, found more"):
        read_table(tmp_path, whole)


def test_rows_that_a_file_claims(tmp_path: Path) -> None:
    whole = write(tmp_path, ("a", [HEAD, ("1.jpg", "cat")]))
    path = tmp_path / "claims.xlsx"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for part in source.namelist():
            text = source.read(part).replace(b'r="2"', b'r="999999999"').replace(b'r="A2"', b'r="A999999999"')
            target.writestr(part, text.replace(b'r="B2"', b'r="B999999999"').replace(b"A1:B2", b"A1:XFD1048576"))
    with pytest.raises(DataError, match=r"row 1048577: expected at most 1,048,576 rows, found more"):
        read_table(tmp_path, path, check_files=False)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"x\.xlsx: expected the package openpyxl .* pip install 'pvlr\[xlsx\]'$"):
        read_table(tmp_path, tmp_path / "x.xlsx")
