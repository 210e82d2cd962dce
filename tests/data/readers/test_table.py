import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers import lines
from pvlr.data.readers.table import read_table
from pvlr.data.readers.voc import VOC_LABELS, read_voc

LABELS = LabelSet(("cat", "cow", "dog"))
MARKS = {"1": "present", "0": "absent", "-1": "unknown"}

LIST = """file,labels,unknown,split,author
a/1.jpg,cat; dog,,train,me
"b, c.jpg",,cow;dog,train,
3.jpg,cow,,test,you

"""
JSONL = """{"file": "a/1.jpg", "labels": ["cat", "dog"], "split": "train", "author": "me"}
{"file": "b, c.jpg", "labels": [], "unknown": ["cow", "dog"], "split": "train"}
{"file": "3.jpg", "labels": ["cow"], "split": "test"}
"""
WIDE = """split,cow,cat,dog,file
train,0,1,1,a/1.jpg
train,-1,0, -1,"b, c.jpg"
test,1,0,0,3.jpg
"""


def write(folder: Path, ending: str, text: str | bytes) -> Path:
    path = folder / f"mine.{ending}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def touch(folder: Path) -> Path:
    for name in ("a/1.jpg", "b, c.jpg", "3.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def said(data: LabelledImages) -> dict[str, str]:
    """Picture to a sign per label: + present, - absent, ? unknown."""
    rows = zip(data.identifiers, data.target.tolist(), data.known.tolist(), strict=True)
    return {
        key: "".join(("+" if mark else "-") if known else "?" for mark, known in zip(marks, knowns, strict=True))
        for key, marks, knowns in rows
    }


@pytest.mark.parametrize(
    ("ending", "text"), [("csv", LIST), ("CSV", "\ufeff" + LIST.replace("\n", "\r\n")), ("jsonl", JSONL)]
)
def test_lists_and_objects(tmp_path: Path, ending: str, text: str) -> None:
    path, images = write(tmp_path, ending, text), touch(tmp_path / "images")
    data = read_table(images, path, split="train")
    assert data.labels == LABELS, "also those of other splits"
    assert said(data) == {"a/1.jpg": "+-+", "b, c.jpg": "-??"}
    assert data.paths[0] == images / "a" / "1.jpg"
    assert not data.target[~data.known].any()
    assert data.summary() == "mine train: 2 images, 3 labels, 1.00 positives per image, 2 unknown labels"
    whole = read_table(images, path, name="all of mine")
    assert said(whole) == {"a/1.jpg": "+-+", "b, c.jpg": "-??", "3.jpg": "-+-"}
    assert whole.summary() == (
        "all of mine: 3 images, 3 labels, 1.00 positives per image, 2 unknown labels (of all splits: test, train)"
    )
    turned = read_table(images, path, labels=LabelSet(("dog", "cow", "cat", "elk")), split="test")
    assert said(turned) == {"3.jpg": "-+--"}


def test_wide_tables(tmp_path: Path) -> None:
    path, images = write(tmp_path, "csv", WIDE), touch(tmp_path)
    data = read_table(images, path, split="train", labels=LABELS, marks=MARKS)
    assert said(data) == {"a/1.jpg": "+-+", "b, c.jpg": "-??"}
    two = read_table(
        images, path, labels=LabelSet(("dog", "cat")), marks={"1": "present", "0": "unknown", "-1": "absent"}
    )
    assert said(two) == {"a/1.jpg": "++", "b, c.jpg": "-?", "3.jpg": "??"}


def test_columns_and_separators_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", "part,path,labels\ntrain,./3.jpg,cat|big dog\n")
    touch(tmp_path)
    data = read_table(tmp_path, path, file_column="path", split_column="part", split="train", separator="|")
    assert (data.labels.names, said(data)) == (("big dog", "cat"), {"3.jpg": "++"})
    path = write(tmp_path, "jsonl", '{"path":"3.jpg","labels":["a"],"unknown":["b"]}')
    assert said(read_table(tmp_path, path, file_column="path")) == {"3.jpg": "+?"}


def test_missing_pictures(tmp_path: Path) -> None:
    path, images = write(tmp_path, "csv", LIST), touch(tmp_path / "images")
    (images / "3.jpg").unlink()
    assert len(read_table(images, path, split="train")) == 2, "it is of another split"
    with pytest.raises(DataError) as caught:
        read_table(images, path)
    assert str(caught.value) == f"{images / '3.jpg'}: expected the picture of {path}: line 4, found no such file"
    assert len(read_table(images, path, check_files=False)) == 3
    left = read_table(images, path, leave_missing=True)
    assert [path.name for path in left.paths if not path.exists()] == ["3.jpg"]
    (images / "b, c.jpg").unlink()
    with pytest.raises(
        DataError, match=r"b, c\.jpg: .*, found no such file; 1 more is missing: data\.on_bad_image drop"
    ):
        read_table(images, path)


def test_missing_pictures_that_an_option_would_find_are_never_left(tmp_path: Path) -> None:
    path, images = write(tmp_path, "csv", HEAD + "x/3.jpg,cat\nx/9.jpg,dog\n"), touch(tmp_path / "images")
    with pytest.raises(DataError, match="set strip_prefix to 'x/'"):
        read_table(images, path, leave_missing=True)


HEAD = "file,labels\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected a table, found an empty file"),
        ("\n\n", ": line 1: expected the columns 'file' and 'labels', found an empty line"),
        (HEAD, ": expected at least one row, found none"),
        (
            "file;labels\n",
            ": line 1: expected the columns 'file' and 'labels', found 'file;labels'; set delimiter to ';'",
        ),
        ("file,label\na,b\n", ": line 1: expected the column 'labels', found 'file', 'label'"),
        ("file,labels,file\n", ": line 1: expected every column once, found 'file' twice"),
        (HEAD + "1.jpg\n", ": line 2: expected 2 values, one per column, found 1"),
        (HEAD + "1.jpg,cat,dog\n", ": line 2: expected 2 values, one per column, found 3"),
        (HEAD + "1.jpg,cat\n\n2.jpg,dog\n", ": line 3: expected a row, found an empty line; take it out"),
        (HEAD + "1.jpg,cat\n,\n", ": line 3: expected the name of a picture without white space around it, found ''"),
        (
            "file,labels,x\n1.jpg,cat,'\n\n'\n2.jpg,cat\n".replace("'", '"'),
            ": line 5: expected 3 values, one per column, found 2",
        ),
        (
            HEAD + '"1\n.jpg",cat\n',
            ": line 2: expected the name of a picture without control characters, found '1\\n.jpg'",
        ),
        (HEAD + '1.jpg,"cat\n', ": line 2: expected comma-separated values, but unexpected end of data"),
        (
            HEAD + f"1.jpg,{'x' * 140_000}\n",
            ": line 2: expected comma-separated values, but field larger than field limit",
        ),
        (
            HEAD + "1.jpg,cat;\n",
            ": line 2: expected a label between any two ';', found an empty name (a separator too many?)",
        ),
        (HEAD + "1.jpg,cat; cat\n", ": line 2: expected every label once, found 'cat' twice"),
        (
            HEAD + f"1.jpg,{'x' * 2000}\n",
            ": line 2: expected the name of a label in at most 1,000 characters, found 2,000",
        ),
        (HEAD + "1.jpg,\n2.jpg,\n", ": expected at least one label, found none"),
        (
            HEAD + "1.jpg,cat\n1.jpg,dog\n",
            ": line 3: expected every picture once, found '1.jpg' again, after {path}: line 2",
        ),
        (
            HEAD + "1.jpg,cat\n./1.jpg,dog\n",
            ": line 3: expected every picture once, found '1.jpg' again, after {path}: line 2",
        ),
        (HEAD + "/1.jpg,cat\n", ": line 2: expected a picture inside its folder, found '/1.jpg'"),
        (HEAD + "a/../../1.jpg,cat\n", ": line 2: expected a picture inside its folder, found 'a/../../1.jpg'"),
        (HEAD + "a\\1.jpg,cat\n", ": line 2: expected a picture's path with / between folders, found 'a\\\\1.jpg'"),
        ((HEAD + "1.jpg,cat\n").encode("utf-16"), ": line 1: expected a table in UTF-8, found other bytes"),
        ((HEAD + "1.jpg,k\xf6nig\n").encode("latin-1"), ": line 2: expected a table in UTF-8, found other bytes"),
        (HEAD + "1.jpg,cat\0\n", ": line 2: expected a table, found a NUL byte"),
        ("file,labels,unknown\n1.jpg,cat,cat\n", ": line 2: expected every label once, found 'cat' twice"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, "csv", text)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path, path, check_files=False)
    assert str(caught.value).startswith(f"{path}" + message.replace("{path}", str(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected a table, found an empty file"),
        ('{"file": "1.jpg"}', ": line 1: expected the key 'labels', found 'file'"),
        ("{}", ": line 1: expected the keys 'file' and 'labels', found no keys"),
        ("[1]", ": line 1: expected an object in braces, found a list"),
        ('{"file": "1.jpg", ', ": line 1: expected JSON, but Expecting property name enclosed in double quotes"),
        ('{"a": 1, "a": 2}', ": line 1: expected every key once, found 'a' twice"),
        ("[" * 100_000, ": line 1: expected JSON, found far too many brackets within brackets"),
        ('{"file": "1.jpg", "labels": "cat"}', ": line 1: expected 'labels' to be a list, found 'cat'"),
        ('{"file": "1.jpg", "labels": [null]}', ": line 1: expected the name of a label, found None"),
        ('{"file": "1.jpg", "labels": [true]}', ": line 1: expected the name of a label, found True"),
        ('{"file": "1.jpg", "labels": [[]]}', ": line 1: expected the name of a label, found a list"),
        (
            '{"file": "1.jpg", "labels": ["\\ud800"]}',
            ": line 1: expected the name of a label in Unicode, found '\\ud800'",
        ),
        (
            '{"file": "1.jpg", "labels": [0]}',
            ": line 1: expected a label by its name, since no labels are given, found 0",
        ),
        ('{"file": 7, "labels": []}', ": line 1: expected the name of a picture, found 7"),
        ('{"file": "1.jpg", "labels": []}\n\n{}', ": line 2: expected a row, found an empty line; take it out"),
        ('{"file": "1.jpg", "labels": [], "split": 3}', ": line 1: expected the name of a split, found 3"),
    ],
)
def test_objects_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "jsonl", text)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path, path, check_files=False)
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            LIST,
            {"labels": LabelSet(("cat", "dog", "cows"))},
            "{path}: line 3: unknown label 'cow', the nearest known one is 'cows'",
        ),
        (LIST, {"split": "val"}, "{path}: expected rows of the split 'val', found those of test, train"),
        (HEAD + "1.jpg,cat", {"split": "val"}, "{path}: line 2: expected 'split' to say the split, found none"),
        (
            LIST.replace(",test,", ",,"),
            {"split": "train"},
            "{path}: line 4: expected 'split' to say the split, found none",
        ),
        (
            LIST,
            {"marks": MARKS},
            "{path}: expected labels, the columns that are labels, found none; "
            "set label_columns to 'others' to take 'labels', 'unknown', 'author'",
        ),
        (
            LIST,
            {"marks": MARKS, "labels": LABELS},
            "{path}: line 1: expected the columns 'cat', 'cow', 'dog', "
            "found 'file', 'labels', 'unknown', 'split', 'author'",
        ),
        (
            WIDE,
            {"marks": {"1": "present", "0": "absent"}, "labels": LABELS},
            "{path}: line 3: expected 'cow' to be one of '1', '0', found '-1'; the cells are '-1', '0', '1': "
            "say what each means, such as marks: {'-1': 'unknown', '1': 'present', '0': 'absent'}",
        ),
        (WIDE, {"marks": {"0": "absent"}, "labels": LABELS}, "marks: expected one that means 'present', got none"),
        (
            WIDE,
            {"marks": {"1": "yes"}, "labels": LABELS},
            "marks: expected 'present', 'absent' or 'unknown' for '1', got 'yes'",
        ),
        (LIST, {"separator": ", "}, "separator: expected a text without white space around it, got ', '"),
        (LIST, {"separator": ""}, "separator: expected a text without white space around it, got ''"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_do_not_fit(tmp_path: Path, text: str, options: Mapping[str, object], message: str) -> None:
    path = write(tmp_path, "csv", text)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path, path, check_files=False, **options)  # type: ignore[arg-type]
    assert str(caught.value) == message.replace("{path}", str(path))


def test_endings_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = r"expected a table whose name ends in \.csv, \.tsv, \.xlsx, \.jsonl or \.json, found"
    with pytest.raises(DataError, match=rf"mine\.txt: {ends} \.txt; set delimiter, if it has columns$"):
        read_table(tmp_path, write(tmp_path, "txt", LIST))
    with pytest.raises(DataError, match=rf"mine: {ends} no ending"):
        read_table(tmp_path, tmp_path / "mine")
    with pytest.raises(DataError, match=r"none\.csv: expected a table, but No such file or directory"):
        read_table(tmp_path, tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"marks: expected a \.csv table, to read a table with a column per label"):
        read_table(tmp_path, write(tmp_path, "jsonl", JSONL), marks={"1": "present"}, labels=LABELS)
    monkeypatch.setattr(lines, "MAX_TABLE_BYTES", 20)
    with pytest.raises(DataError, match=r"mine\.csv: expected a table of at most 20 bytes, found more"):
        read_table(tmp_path, write(tmp_path, "csv", LIST))


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp"], exclude_characters="\\/:.;"),
    min_size=1,
    max_size=6,
).filter(lambda name: name == name.strip())


@given(data=st.data())
def test_what_is_written_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = tuple(data.draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)))
    signs = st.text("+-?", min_size=len(names), max_size=len(names))
    rows = data.draw(
        st.dictionaries(NAMES, st.tuples(signs, st.sampled_from(["train", "test"])), min_size=1, max_size=5)
    )
    folder = tmp_path_factory.getbasetemp()
    labels = LabelSet(names)

    def of(row: str, sign: str) -> list[str]:
        return [name for name, mark in zip(names, row, strict=True) if mark == sign]

    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "file", "unknown", "labels"])
        writer.writerows(
            [part, key, ";".join(of(row, "?")), ";".join(of(row, "+"))] for key, (row, part) in rows.items()
        )
    with (folder / "list.jsonl").open("w", encoding="utf-8") as file:
        for key, (row, part) in rows.items():
            line = {"file": key, "labels": of(row, "+"), "unknown": of(row, "?"), "split": part}
            file.write(json.dumps(line, ensure_ascii=data.draw(st.booleans())) + "\n")
    for ending in ("csv", "jsonl"):
        for split in ("train", "test"):
            expected = {key: row for key, (row, part) in rows.items() if part == split}
            if expected:
                read = read_table("x", folder / f"list.{ending}", split=split, labels=labels, check_files=False)
                assert said(read) == expected


@pytest.mark.parametrize(("split", "part"), [("train", "trainval"), ("test", "test")])
def test_a_real_wide_table(shared: Path, split: str, part: str) -> None:
    folder = shared / "data" / "voc-mini"
    data = read_table(
        folder,
        folder / "labels.csv",
        split=split,
        labels=VOC_LABELS,
        marks={"1": "present", "0": "unknown", "-1": "absent"},
        file_column="path",
        split_column="mini_split",
    )
    voc = read_voc(folder, split=part, train=split == "train")
    rows = {Path(key).stem: row for row, key in enumerate(data.identifiers)}
    assert set(rows) == set(voc.identifiers)
    data = data.select([rows[key] for key in voc.identifiers])
    assert torch.equal(data.target, voc.target)
    assert torch.equal(data.known, voc.known)
    assert data.paths == voc.paths
    assert torch.equal(data[7].image, voc[7].image)
