"""Files of COCO as labelling tools write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers.coco import COCORules, NoPictureError, read_coco

MERGE, DROP = COCORules(same_names="merge"), COCORules(unused="drop")


def write(folder: Path, categories: dict[Any, str], marks: dict[str, list[Any]], **more: Any) -> Path:
    """Write a file in which picture i has the id i and annotations of these categories."""
    numbers = {file: number for number, file in enumerate(marks, start=1)}
    content = {
        "images": [{"id": number, "file_name": file} for file, number in numbers.items()],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {"image_id": numbers[file], "category_id": category, **more} for file in marks for category in marks[file]
        ],
    }
    path = folder / "export.json"
    path.write_text(json.dumps(content))
    return path


def read(folder: Path, path: Path, **options: Any) -> LabelledImages:
    return read_coco(folder, path, check_files=False, **options)


def rows(data: LabelledImages) -> dict[str, set[str]]:
    pairs = zip(data.identifiers, data.target.tolist(), strict=True)
    return {file: {name for name, mark in zip(data.labels, row, strict=True) if mark} for file, row in pairs}


def test_a_category_of_which_nothing_is_annotated(tmp_path: Path) -> None:
    path = write(tmp_path, {0: "birds-xqz1", 2: "wren", 1: "owl"}, {"a.png": [1], "b.png": [2, 1]})
    kept = read(tmp_path, path)
    assert kept.labels.names == ("birds-xqz1", "owl", "wren")
    assert kept.note == "0 without a label left out, 1 label without an annotation kept: 'birds-xqz1'"
    dropped = read(tmp_path, path, rules=DROP)
    assert dropped.labels.names == ("owl", "wren")
    assert rows(dropped) == rows(kept) == {"a.png": {"owl"}, "b.png": {"owl", "wren"}}
    assert dropped.note == "0 without a label left out, 1 label without an annotation left out: 'birds-xqz1'"
    with pytest.raises(DataError) as caught:
        read(tmp_path, path, rules=COCORules(unused="refuse"))
    assert str(caught.value) == (
        f"{path}: categories: expected every label to be annotated, found none of 'birds-xqz1'; "
        f"set unused to 'drop' or 'keep'"
    )


def test_given_labels_are_not_dropped(tmp_path: Path) -> None:
    path = write(tmp_path, {0: "x", 1: "owl"}, {"a.png": [1]})
    assert read(tmp_path, path, labels=LabelSet(("owl", "x")), rules=DROP).labels.names == ("owl", "x")


def test_a_category_that_no_training_picture_has_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, {0: "x", 1: "owl"}, {"a.png": [1], "b.png": [0]})
    with pytest.raises(DataError, match=r"image 2: unknown label 'x', .*; set unused to 'keep', which keeps labels"):
        read(tmp_path, path, labels=LabelSet(("owl",)), rules=DROP)


def test_a_file_without_annotations_has_no_labels_to_keep(tmp_path: Path) -> None:
    path = write(tmp_path, {1: "owl"}, {"a.png": []})
    with pytest.raises(DataError, match="categories: expected at least one label that is annotated, found none"):
        read(tmp_path, path, keep_unlabelled=True, rules=DROP)


def test_categories_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path, {4: "owl", 9: "owl", 6: "wren"}, {"a.png": [4, 9], "b.png": [9], "c.png": [6]})
    merged = read(tmp_path, path, rules=MERGE)
    assert merged.labels.names == ("owl", "wren")
    assert rows(merged) == {"a.png": {"owl"}, "b.png": {"owl"}, "c.png": {"wren"}}
    refusal = "expected one category of a name, found 'owl' with the ids 4 and 9; set same_names to 'merge'"
    for rules, labels in ((COCORules(), None), (DROP, None), (COCORules(), LabelSet(("wren", "owl")))):
        with pytest.raises(DataError, match=refusal):
            read(tmp_path, path, rules=rules, labels=labels)
    assert read(tmp_path, path, rules=MERGE, labels=LabelSet(("wren", "owl"))).target.tolist() == [
        [0, 1],
        [0, 1],
        [1, 0],
    ]


def test_a_project_named_like_its_only_category(tmp_path: Path) -> None:
    path = write(tmp_path, {0: "owl", 1: "owl"}, {"a.png": [1]})
    assert read(tmp_path, path, rules=DROP).labels.names == ("owl",)
    assert read(tmp_path, path, rules=MERGE).note == "0 without a label left out", "the name is used"
    assert read(tmp_path, path, rules=DROP, labels=LabelSet(("owl",))).target.tolist() == [[1]]


@pytest.mark.parametrize("box", [None, []])
def test_an_annotation_of_the_whole_picture_is_present(tmp_path: Path, box: object) -> None:
    path = write(tmp_path, {1: "owl", 2: "wren"}, {"a.png": [2], "b.png": [1, 2]}, bbox=box, iscrowd=False)
    assert rows(read(tmp_path, path)) == {"a.png": {"wren"}, "b.png": {"owl", "wren"}}


def test_ids_as_texts(tmp_path: Path) -> None:
    files = {"img-7": "a.png", "8": "b.png", "08": "c"}
    content = {
        "images": [{"id": number, "file_name": file} for number, file in files.items()],
        "categories": [{"id": "10", "name": "ten"}, {"id": "9", "name": "nine"}, {"id": "z", "name": "last"}],
        "annotations": [
            {"image_id": "img-7", "category_id": "z"},
            {"image_id": 8, "category_id": 10},
            {"image_id": "08", "category_id": "9"},
        ],
    }  # fmt: skip
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    data = read(tmp_path, path)
    assert data.labels.names == ("nine", "ten", "last"), "numbers by their value, then texts"
    assert rows(data) == {"a.png": {"last"}, "b.png": {"ten"}, "c": {"nine"}}
    content["annotations"].append({"image_id": "img-\u202e9", "category_id": "z"})
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read(tmp_path, path)
    assert "\u202e" not in str(caught.value)


def test_annotations_of_pictures_that_were_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, {1: "owl", 2: "wren"}, {"a.png": [1], "gone.png": [2, 2]})
    content = json.loads(path.read_text())
    del content["images"][1]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\[1\]: expected the id of one of the images, found 2; set strays"):
        read(tmp_path, path)
    data = read(tmp_path, path, rules=COCORules(strays="drop", unused="drop"))
    assert (rows(data), data.labels.names) == ({"a.png": {"owl"}}, ("owl",))
    assert data.note.endswith("left out: 'wren', 2 annotations of other images left out")


def test_paths_of_windows(tmp_path: Path) -> None:
    (tmp_path / "set 1" / "deep").mkdir(parents=True)
    (tmp_path / "set 1" / "deep" / "a.png").touch()
    path = write(tmp_path, {1: "owl"}, {"set 1\\deep\\a.png": [1]})
    assert read_coco(tmp_path, path).paths == (tmp_path / "set 1" / "deep" / "a.png",)
    assert read_coco(tmp_path, path).identifiers == ("set 1/deep/a.png",)
    literal = tmp_path / "set 1\\deep\\a.png"
    literal.touch()
    with pytest.raises(DataError, match="is the name of a file too: rename that file"):
        read_coco(tmp_path, path)
    literal.unlink()
    path = write(tmp_path, {1: "owl"}, {"set 1\\deep\\a.png": [1], "set 1/deep/a.png": [1]})
    with pytest.raises(DataError, match=r"images\[1\]: expected every file once, found 'set 1/deep/a.png' again"):
        read_coco(tmp_path, path)


def test_a_folder_without_the_first_picture_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path, {1: "owl"}, {"a.png": [1], "b.png": [1]})
    with pytest.raises(NoPictureError, match=r"a\.png: expected the picture of .*: image 1, found no such file") as err:
        read_coco(tmp_path, path)
    assert err.value.name == "a.png"
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"b\.png: expected") as other:
        read_coco(tmp_path, path)
    assert not isinstance(other.value, NoPictureError)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rule", ["unused", "same_names", "strays"])
def test_rules_are_checked(rule: str) -> None:
    with pytest.raises(DataError, match=f"{rule}: expected one of .*, got 'maybe'"):
        COCORules(**{rule: "maybe"})  # type: ignore[arg-type]
