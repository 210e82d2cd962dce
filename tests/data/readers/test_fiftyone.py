"""FiftyOne's labels.json as a table: what its exports hold, what `pvlr tag` writes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.readers.table import read_table
from pvlr.inference.interchange import FiftyOneFile
from pvlr.inference.tags import Tag

CLASSES = ("cat", "fire truck", "dog")


def write(folder: Path, labels: Any, classes: Any = CLASSES) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps({"classes": classes, "labels": labels}))
    return path


def found_in(folder: Path, path: Path, **options: Any) -> dict[str, set[str]]:
    data = read_table(folder, path, check_files=False, **options)
    rows = zip(data.identifiers, data.target.bool().tolist(), strict=True)
    return {name: {label for label, is_there in zip(data.labels, row, strict=True) if is_there} for name, row in rows}


@given(
    st.lists(st.sets(st.sampled_from(CLASSES)), min_size=1, max_size=5), st.sampled_from(["name", "position", "object"])
)
def test_names_positions_and_objects_are_labels(tmp_path_factory: Any, sets: list[set[str]], form: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    written = {
        "name": lambda label: label,
        "position": CLASSES.index,
        "object": lambda label: {"label": label, "confidence": 0.5, "bounding_box": [0, 0, 1, 1]},
    }[form]
    labels = {f"p/{n}": [written(label) for label in sorted(one)] * 2 for n, one in enumerate([*sets, set(CLASSES)])}
    found = found_in(folder, write(folder, labels), suffix=".jpg")
    assert list(found.values()) == [*sets, set(CLASSES)]
    assert next(iter(found)).startswith("p/0")


def test_one_label_and_none(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.jpg": "cat", "b.jpg": None, "c.jpg": 2, "d.jpg": {"label": "fire truck"}})
    assert list(found_in(tmp_path, path).values()) == [{"cat"}, set(), {"dog"}, {"fire truck"}]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / name)
    with FiftyOneFile(tmp_path / "labels.json", LabelSet(CLASSES)) as file:
        file.add(str(tmp_path / "in" / "a.png"), [Tag("dog", 0.75, None), Tag("cat", 0.5, None)])
        file.add(str(tmp_path / "in" / "b.png"), [])
    found = found_in(tmp_path / "in", tmp_path / "labels.json", strip_prefix=f"{tmp_path}/in/")
    assert found == {"a.png": {"cat", "dog"}, "b.png": set()}


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (
            {"a.jpg": 3},
            CLASSES,
            "labels.json: a.jpg: expected a label's name, its position among 3 classes ",
        ),
        (
            {"a.jpg": [True]},
            CLASSES,
            "labels.json: a.jpg: expected a label's name, its position .*found ",
        ),
        ({"a.jpg": {"confidence": 1}}, CLASSES, "labels.json: a.jpg: expected .* an object with 'label', found "),
        ([], CLASSES, "labels.json: expected a list of classes and an object of labels"),
        ({}, "cat", "labels.json: expected a list of classes and an object of labels"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, labels: Any, classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(tmp_path, write(tmp_path, labels, classes), check_files=False)
