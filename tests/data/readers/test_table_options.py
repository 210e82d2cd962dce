"""Tables as people have them: each refusal names an option, and the option reads the table."""

import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers.table import read_table
from pvlr.data.readers.tables.format import TableFormat
from pvlr.train.config import ConfigError
from pvlr.train.data_config import TableData

PICTURES = ("a/1.jpg", "b.jpg", "c d.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in PICTURES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).touch()
    return tmp_path / "images"


def write(folder: Path, text: str | bytes, ending: str = "csv") -> Path:
    path = folder.parent / f"mine.{ending}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def said(data: LabelledImages) -> dict[str, str]:
    """Picture to a sign per label: + present, - absent, ? unknown."""
    rows = zip(data.identifiers, data.target.tolist(), data.known.tolist(), strict=True)
    return {
        key: "".join(("+" if mark else "-") if known else "?" for mark, known in zip(marks, knowns, strict=True))
        for key, marks, knowns in rows
    }


def refused(images: Path, path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_table(images, path, **options)
    return str(caught.value).replace(f"{path}: ", "").replace(str(images), "images")


LISTED = {"a/1.jpg": "+-+", "b.jpg": "-+-", "c d.png": "---"}
SEMICOLONS = "file;labels\na/1.jpg;cat,elk\nb.jpg;dog\nc d.png;\n"


@pytest.mark.parametrize(
    ("text", "ending", "options", "without"),
    [
        (
            SEMICOLONS,
            "csv",
            {"delimiter": ";", "separator": ","},
            "line 1: expected the columns 'file' and 'labels', found 'file;labels'; set delimiter to ';'",
        ),
        (
            SEMICOLONS.replace(";", "\t").replace(",", ";"),
            "csv",
            {"delimiter": "tab"},
            "line 1: expected the columns 'file' and 'labels', found 'file\\tlabels'; set delimiter to 'tab'",
        ),
        (SEMICOLONS.replace(";", "\t").replace(",", ";"), "tsv", {}, None),
        (
            SEMICOLONS.replace(",", "  ").replace(";", "|"),
            "txt",
            {"delimiter": "|", "separator": " "},
            "expected a table whose name ends in .csv, .tsv, .xlsx, .jsonl or .json, found .txt; "
            "set delimiter, if it has columns",
        ),
        (
            "picture,what is there\na/1.jpg,cat;elk\nb.jpg,dog\nc d.png,\n",
            "csv",
            {"file_column": "picture", "label_column": "what is there"},
            "line 1: expected the columns 'file' and 'labels', found 'picture', 'what is there'; "
            "say which they are with file_column and label_column",
        ),
        (
            "file,labels\na/1,cat;elk\nb,dog\nc d.png,\n",
            "csv",
            {"suffix": ".jpg"},
            "images/a/1: expected the picture of line 2, found no such file; set suffix to '.jpg'",
        ),
        (
            "file,labels\nset/a/1.jpg,cat;elk\nset/b.jpg,dog\nset/c d.png,\n",
            "csv",
            {"strip_prefix": "set/"},
            "images/set/a/1.jpg: expected the picture of line 2, found no such file; set strip_prefix to 'set/'",
        ),
        (
            "file,labels\n/mnt/me/a/1.jpg,cat;elk\n/mnt/me/b.jpg,dog\n/mnt/me/c d.png,\n",
            "csv",
            {"strip_prefix": "/mnt/me/"},
            "line 2: expected a picture inside its folder, found '/mnt/me/a/1.jpg'; set strip_prefix to '/mnt/me/'",
        ),
        (
            "file,labels\n../x/a/1.jpg,cat;elk\n../x/b.jpg,dog\n../x/c d.png,\n",
            "csv",
            {"strip_prefix": "../x/"},
            "line 2: expected a picture inside its folder, found '../x/a/1.jpg'; set strip_prefix to '../x/'",
        ),
        (
            "file,labels\nC:\\me\\a\\1.jpg,cat;elk\nC:\\me\\b.jpg,dog\nC:\\me\\c d.png,\n",
            "csv",
            {"strip_prefix": "C:\\me\\"},
            "line 2: expected a picture's path with / between folders, found 'C:\\\\me\\\\a\\\\1.jpg'; "
            "set strip_prefix to 'C:\\me\\'",
        ),
        (
            "file,labels\na\\1.jpg,cat;elk\nb.jpg,dog\nc d.png,\n",
            "csv",
            {"strip_prefix": ""},
            "line 2: expected a picture's path with / between folders, found 'a\\\\1.jpg'; "
            "set strip_prefix to '', which makes \\ a /",
        ),
        (
            "file,labels\nhttps://x.org/s/a/1.jpg,cat;elk\nhttps://x.org/s/b.jpg,dog\nhttps://x.org/s/c%20d.png,\n",
            "csv",
            {"strip_prefix": "https://x.org/s"},
            "line 2: expected a picture inside its folder, found 'https://x.org/s/a/1.jpg'; "
            "set strip_prefix to 'https://x.org/s/'",
        ),
        (
            'file,labels\na/1.jpg,"[""cat"", ""elk""]"\nb.jpg,"{""choices"": [""dog""]}"\nc d.png,\n',
            "csv",
            {"cells": "json"},
            "line 2: expected labels between separators, found '[\"cat\", \"elk\"]'; set cells to 'json'",
        ),
        (
            "file,labels\na/1.jpg,\"['cat', 'elk']\"\nb.jpg,['dog']\nc d.png,[]\n",
            "csv",
            {"cells": "python"},
            "line 2: expected labels between separators, found \"['cat', 'elk']\"; set cells to 'python'",
        ),
        (
            json.dumps([
                {"file": "a/1.jpg", "labels": {"choices": ["cat", "elk"]}},
                {"file": "b.jpg", "labels": "dog"},
                {"file": "c d.png", "labels": []},
            ]),
            "json",
            {"cells": "json"},
            "object 1: expected 'labels' to be a list, found an object of choices; set cells to 'json'",
        ),
        (
            "file,labels\na/1.jpg,cat\nb.jpg,dog\na/1.jpg,elk\nc d.png,\n",
            "csv",
            {"repeated": "union"},
            "line 4: expected every picture once, found 'a/1.jpg' again, after line 2; "
            "set repeated to 'union' to unite its labels, or form to 'long' if each row says one",
        ),
    ],
)  # fmt: skip
def test_the_option_that_is_named_reads_the_table(
    images: Path, text: str, ending: str, options: Mapping[str, Any], without: str | None
) -> None:
    path = write(images, text, ending)
    assert said(read_table(images, path, **options)) == LISTED
    if without is not None:
        bare = {name: value for name, value in options.items() if name in ("separator",)}
        assert refused(images, path, **bare) == without


@pytest.mark.parametrize(
    ("encoding", "hint"),
    [
        ("utf-16", "line 1: expected a table in UTF-8, found other bytes; set encoding to 'utf-16'"),
        ("utf-16-le", "line 3: expected a table in UTF-8, found other bytes; set encoding to 'utf-16-le'"),
        ("utf-16-be", "line 3: expected a table in UTF-8, found other bytes; set encoding to 'utf-16-be'"),
        (
            "cp1252",
            "line 3: expected a table in UTF-8, found other bytes; if its line is 'b.jpg,Bär', "
            "set encoding to 'cp1252'",
        ),
        ("utf-8-sig", None),
    ],
)
def test_encodings(images: Path, encoding: str, hint: str | None) -> None:
    path = write(images, "file,labels\na/1.jpg,cat\nb.jpg,Bär\n".encode(encoding))
    assert read_table(images, path, encoding=encoding).labels.names == ("Bär", "cat")
    if hint is None:
        assert read_table(images, path).labels.names == ("Bär", "cat")
    else:
        assert refused(images, path) == hint
    assert ": expected a table in ascii, found other bytes" in refused(images, path, encoding="ascii")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_ascii_of_two_bytes(images: Path, encoding: str) -> None:
    path = write(images, "file,labels\nb.jpg,cat\n".encode(encoding))
    assert refused(images, path) == f"line 1: expected a table, found a NUL byte; set encoding to '{encoding}'"
    assert refused(images, write(images, "file,labels\nb.jpg,c\0at\n")) == (
        "line 2: expected a table, found a NUL byte"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "klingon"}, "encoding: expected one of Python's names, such as 'cp1252' or 'utf-16', got 'klin"),
        ({"encoding": "zip"}, "encoding: expected one of Python's names, such as 'cp1252' or 'utf-16', got 'zip'"),
        ({"delimiter": ";;"}, "delimiter: expected one character, or 'tab', got ';;'"),
        ({"suffix": "jpg"}, "suffix: expected an ending of pictures, such as '.jpg', got 'jpg'"),
        ({"suffix": "/../1.jpg"}, "suffix: expected an ending of pictures, such as '.jpg', got '/../1.jpg'"),
        ({"form": "broad"}, "form: expected one of 'list', 'wide', 'long', got 'broad'"),
        ({"value_column": "x"}, "value_column: expected form 'long', to which it belongs, got 'list'"),
        ({"form": "list", "marks": {"1": "present"}}, "marks: expected form 'wide' or 'long', to which they belong"),
        ({"form": "long", "marks": {"1": "present"}}, "marks: expected value_column, the column of their cells"),
        ({"marks": {True: "present"}}, "marks: expected a cell as a text in quotes, got True"),
        ({"label_columns": "others", "unnamed": "unknown"}, "unnamed: expected form 'list' or 'long'"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_options_that_do_not_fit(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        TableFormat(**options)
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError) as configured:
        TableData(**options)
    assert str(configured.value).startswith(f"data.{message[:20]}")


@pytest.mark.usefixtures("unchecked")
def test_a_number_of_yaml_is_a_cell() -> None:
    given: Any = {1.0: "present", 0: "absent", float("nan"): "unknown"}
    assert TableData(marks=given).marks == {"1.0": "present", "0": "absent", "nan": "unknown"}


def test_names_in_another_spelling(images: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD"))
    (images / apart).mkdir()
    (images / apart / "é.JPG".replace("é", unicodedata.normalize("NFD", "é"))).touch()
    (images / "x.jpeg").touch()
    (images / composed).with_suffix(".png").touch()
    text = f"file,labels\n{composed}/é.JPG,cat\nx.JPEG,dog\n{apart}.png,\nb.jpg,\n"
    data = read_table(images, write(images, text))
    assert data.identifiers == (f"{composed}/é.JPG", "x.JPEG", f"{apart}.png", "b.jpg")
    assert all(isinstance(path, Path) and path.is_file() for path in data.paths)
    assert data.note == "of 2 files the name is in another Unicode form, of 1 file the ending is in another case"


def test_a_spelling_that_is_not_one_file(images: Path) -> None:
    for name in ("x.JPG", "x.Jpg"):
        (images / name).touch()
    path = write(images, "file,labels\nx.jpg,cat\n")
    assert refused(images, path) == (
        "images/x.jpg: expected the picture of line 2, found 'x.JPG' and 'x.Jpg' in images"
    )
    path = write(images, "file,labels\nb.jpg,cat\nb.JPG,dog\n")
    assert refused(images, path) == ("line 3: expected every picture once, found images/b.jpg again, after line 2")
    path = write(images, "file,labels\nB.jpg,cat\n")
    assert refused(images, path) == "images/B.jpg: expected the picture of line 2, found no such file"


@pytest.mark.parametrize(
    "name", ["/x/../../b.jpg", "/x//b.jpg", "/x/%2e%2e/b.jpg", "/x/a\x1b.jpg", "/y/b.jpg", "/x/", "/x/C:/b.jpg"]
)
def test_no_prefix_leads_out(images: Path, name: str) -> None:
    path = write(images, f"file,labels\n{name},cat\n")
    assert refused(images / "a", path, strip_prefix="/x/").startswith(("line 2: expected ", "images/%2e%2e/b.jpg"))
    path = write(images, "file,labels\nhttp://x/%2e%2e/b.jpg,cat\n")
    assert "inside its folder, found '../b.jpg'" in refused(images / "a", path, strip_prefix="http://x/")


def test_a_link_among_other_spellings_does_not_lead_out(images: Path) -> None:
    (images.parent / "secret").touch()
    (images / "x.JPG").symlink_to(images.parent / "secret")
    path = write(images, "file,labels\nx.jpg,cat\n")
    assert "images/x.JPG: expected the picture inside images, found a link" in refused(images, path)


WIDE = ",picture,person,elk,dog,split,who\n0,a/1.jpg,1.0,0.0,,train,me\n1,b.jpg,,1.0,-1.0,test,you\n"


def test_a_wide_table_is_read_without_naming_its_labels(images: Path) -> None:
    path = write(images, WIDE)
    options: dict[str, Any] = {"file_column": "picture"}
    first = refused(images, path, **options)
    assert first == (
        "line 1: expected the column 'labels', found '', 'picture', 'person', 'elk', 'dog', 'split', 'who'; "
        "say which it is with label_column; or, if 'person', 'elk', 'dog' are labels, whose cells are '', '-1.0', "
        "'0.0', '1.0', set label_columns: 'others', ignore_columns: ['who'] and say what each cell means, such as "
        "marks: {'1.0': 'present', '0.0': 'absent', '': 'unknown', '-1.0': 'unknown'}"
    )
    options["marks"] = {"1.0": "present", "0.0": "absent", "": "unknown"}
    assert refused(images, path, **options) == (
        "expected labels, the columns that are labels, found none; "
        "set label_columns to 'others' to take 'person', 'elk', 'dog', 'who'"
    )
    options["label_columns"] = "others"
    assert refused(images, path, **options) == (
        "line 2: expected 'who' to be one of '1.0', '0.0', '', found 'me'; "
        "if they are no labels, set ignore_columns to ['who']"
    )
    options["ignore_columns"] = ("who",)
    assert refused(images, path, **options) == (
        "line 3: expected 'dog' to be one of '1.0', '0.0', '', found '-1.0'; the cells are '', '-1.0', '0.0', '1.0': "
        "say what each means, such as marks: {'-1.0': 'unknown', '1.0': 'present', '0.0': 'absent', '': 'unknown'}"
    )
    options["marks"] = {**options["marks"], "-1.0": "unknown"}
    data = read_table(images, path, **options)
    assert data.labels.names == ("dog", "elk", "person")
    assert said(data) == {"a/1.jpg": "?-+", "b.jpg": "?+?"}
    options["ignore_columns"] = ("who", "whom")
    assert refused(images, path, **options).startswith("ignore_columns: expected columns of ")


def test_cells_without_number_are_not_all_told(images: Path) -> None:
    rows = "".join(f"{number}.jpg,{number},{number + 1}\n" for number in range(2, 60))
    message = refused(images, write(images, f"file,x,y\n{rows}"), label_columns="others")
    assert message == (
        "line 2: expected marks, the meaning of cells such as '2' of 'x', found none; the cells are '10', '11', '12', "
        "'13', '14', '15', '16', '17', '18', '19' and 49 more"
    )


LONG = "file,labels,sure,split\nb.jpg,dog,1,x\na/1.jpg,cat,1,x\na/1.jpg,elk,0,x\nb.jpg,cat,,x\na/1.jpg,cat,1,x\n"


def test_long_tables(images: Path) -> None:
    path, marks = write(images, LONG), {"1": "present", "0": "absent", "": "unknown"}
    assert refused(images, path, form="long") == (
        "expected value_column, as 'sure' with the cells '', '0', '1' may say which labels are absent; "
        "set value_column to 'sure' and marks to {'1': 'present', '0': 'absent', '': 'unknown'}, or value_column to '' "
        "if every row says that its label is present"
    )
    assert refused(images, path, form="long", value_column="sure") == (
        "line 2: expected 'sure' to be a cell of marks, found '1'; the cells are '', '0', '1': say what each means, "
        "such as marks: {'1': 'present', '0': 'absent', '': 'unknown'}"
    )
    options: dict[str, Any] = {"form": "long", "value_column": "sure", "marks": marks}
    assert refused(images, path, **options) == (
        "expected a row for every picture and label, found none for 'elk' of 'b.jpg' and 1 other pairs; "
        "set unnamed to 'unknown' or 'absent'"
    )
    assert said(read_table(images, path, unnamed="unknown", **options)) == {"b.jpg": "?+?", "a/1.jpg": "+?-"}
    assert said(read_table(images, path, unnamed="absent", split="x", **options)) == {"b.jpg": "?+-", "a/1.jpg": "+--"}
    assert said(read_table(images, path, form="long", value_column="")) == {"b.jpg": "++-", "a/1.jpg": "+-+"}
    labels = LabelSet(("elk", "dog", "cat", "cow"))
    data = read_table(images, path, unnamed="unknown", labels=labels, **options)
    assert said(data) == {"b.jpg": "?+??", "a/1.jpg": "-?+?"}
    assert not data.target[~data.known].any()


def test_rows_of_a_long_table_that_contradict_each_other(images: Path) -> None:
    path = write(images, "file,labels,sure\nb.jpg,dog,0\nb.jpg,dog,1\nb.jpg,cat,0\n")
    options: dict[str, Any] = {"form": "long", "value_column": "sure", "marks": {"1": "present", "0": "absent"}}
    assert refused(images, path, **options) == (
        "line 3: expected 'dog' of 'b.jpg' to be absent, as before, found present; "
        "set repeated to 'union' to take it as present where any row says so"
    )
    assert said(read_table(images, path, repeated="union", **options)) == {"b.jpg": "-+"}
    path = write(images, "file,labels,split\nb.jpg,dog,x\nb.jpg,cat,y\n")
    for form in ({"form": "long"}, {"repeated": "union"}):
        assert "line 3: expected 'b.jpg' in the split 'x' of " in refused(images, path, **form)


def test_a_long_table_is_its_wide_one(images: Path) -> None:
    signs = {key: "".join("01?"[(row * column + row) % 3] for column in range(5)) for row, key in enumerate(PICTURES)}
    names = [f"l{column}" for column in range(5)]
    wide = "".join(f"{key},{','.join(row)}\n" for key, row in signs.items())
    long = "".join(
        f"{key},{name},{sign}\n" for key, row in signs.items() for name, sign in zip(names, row, strict=True)
    )
    marks: Any = {"0": "absent", "1": "present", "?": "unknown"}
    path = write(images, f"file,{','.join(names)}\n{wide}")
    first = read_table(images, path, marks=marks, label_columns="others")
    path = write(images, f"file,labels,v\n{long}")
    second = read_table(images, path, form="long", value_column="v", marks=marks)
    assert first.digest() == second.digest()


def test_labels_that_are_not_named_may_be_unknown(images: Path) -> None:
    path = write(images, "file,labels,unknown\nb.jpg,dog,\na/1.jpg,cat,dog\n")
    assert said(read_table(images, path)) == {"b.jpg": "-+", "a/1.jpg": "+?"}
    assert said(read_table(images, path, unnamed="unknown")) == {"b.jpg": "?+", "a/1.jpg": "+?"}


def test_rows_of_a_picture_are_united(images: Path) -> None:
    path = write(images, "file,labels,unknown\nb.jpg,dog,elk;cow\nb.jpg,elk;cat,cat2\n./b.jpg,,cow\n")
    data = read_table(images, path, repeated="union")
    assert said(data) == {"b.jpg": "+??++"}
    assert data.labels.names == ("cat", "cat2", "cow", "dog", "elk")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('{"file": "b.jpg"}', {}, "expected a list of objects, found an object with 'file'"),
        ("[1]", {}, "object 1: expected an object in braces, found 1"),
        ("[]", {}, "expected at least one row, found none"),
        ("", {}, "expected a table, found an empty file"),
        (
            '{"file": "b.jpg"}\n{"file": "c.jpg"}', {},
            "expected JSON, but Extra data: line 2 column 1 (char 18); a table of an object a line ends in .jsonl",
        ),
        (
            '[{"image": "b.jpg", "choice": "x"}]', {},
            "object 1: expected the keys 'file' and 'labels', found 'image', 'choice'; "
            "say which they are with file_column and label_column",
        ),
        (
            '[{"file": "b.jpg", "labels": {"x": 1}}]', {"cells": "json"},
            "object 1: expected a list of labels, or an object with 'choices', found a dict",
        ),
        ("[" * 100_000, {}, "expected JSON, found far too many brackets within brackets"),
        (
            '[{"file": "b.jpg", "labels": [0, 1]}]', {"labels": LabelSet(("x", "y"))},
            "object 1: expected 'labels' to hold positions of labels, found a 0 or 1 for each of 2; "
            "give the names of those that are present",
        ),
    ],
)  # fmt: skip
def test_lists_of_objects_that_are_refused(images: Path, text: str, options: Mapping[str, Any], message: str) -> None:
    assert refused(images, write(images, text, "json"), **options) == message


@pytest.mark.parametrize(
    ("cell", "cells"),
    [("['cat' 'dog']", "python"), ("['cat\\'s']", "python"), ("cat", "python"), ('["cat"', "json"), ("{}", "json")],
)
def test_cells_that_are_no_lists(images: Path, cell: str, cells: str) -> None:
    path = write(images, f"file|labels\nb.jpg|{cell}\n".replace('"', '""').replace("|[", '|"[').replace("]\n", ']"\n'))
    assert refused(images, path, delimiter="|", cells=cells).startswith("line 2: expected ")


def test_the_configuration_reads_what_the_reader_reads(images: Path) -> None:
    path = write(images, "name;tags\n/x/a/1;cat dog\n/x/b;dog\n")
    options: dict[str, Any] = {
        "file_column": "name", "label_column": "tags", "delimiter": ";", "separator": " ", "suffix": ".jpg",
        "strip_prefix": "/x/",
    }  # fmt: skip
    data = TableData(images=str(images), table=str(path), **options).read(None, train=True)
    direct = read_table(images, path, **options)
    assert data.digest() == direct.digest()
    assert torch.equal(data.target, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
