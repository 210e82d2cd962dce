import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers import coco
from pvlr.data.readers.coco import COCO_LABELS, read_coco


def content() -> dict[str, Any]:
    return {
        "info": {"year": 2014},
        "images": [
            {"id": 30, "file_name": "c.jpg"},
            {"id": 10, "file_name": "deep/a.jpg"},
            {"id": 20, "file_name": "b.jpg"},
        ],
        "categories": [
            {"id": 18, "name": "dog", "supercategory": "animal"},
            {"id": 3, "name": "car"},
            {"id": 17, "name": "cat"},
        ],
        "annotations": [
            {"id": 1, "image_id": 30, "category_id": 18, "bbox": [0, 0.5, 9, 9], "iscrowd": 0, "segmentation": [[1]]},
            {"id": 2, "image_id": 30, "category_id": 18, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 3, "image_id": 10, "category_id": 17, "bbox": [1, 2, 0, 0], "iscrowd": 1},
            {"id": 4, "image_id": 10, "category_id": 3},
        ],
    }


def write(folder: Path, content: object) -> Path:
    path = folder / "instances_mine.json"
    path.write_text(json.dumps(content))
    for name in ("deep/a.jpg", "b.jpg", "c.jpg"):
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return path


def present(data: LabelledImages) -> dict[str, set[str]]:
    rows = zip(data.identifiers, data.target.tolist(), strict=True)
    return {key: {name for name, mark in zip(data.labels, row, strict=True) if mark} for key, row in rows}


def test_labels_by_category_id_and_pictures_by_file(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    data = read_coco(tmp_path / "images", path)
    assert data.labels.names == ("car", "cat", "dog")
    assert list(present(data).items()) == [("c.jpg", {"dog"}), ("deep/a.jpg", {"car", "cat"})]
    assert data.paths == (tmp_path / "images" / "c.jpg", tmp_path / "images" / "deep" / "a.jpg")
    assert bool(data.known.all())
    assert data.summary() == (
        "instances_mine: 2 images, 3 labels, 1.50 positives per image, 0 unknown labels (1 without a label left out)"
    )


def test_pictures_without_a_label_may_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    data = read_coco(tmp_path / "images", path, keep_unlabelled=True, name="mine")
    assert list(present(data).items()) == [("c.jpg", {"dog"}), ("deep/a.jpg", {"car", "cat"}), ("b.jpg", set())]
    assert data.summary() == (
        "mine: 3 images, 3 labels, 1.00 positives per image, 0 unknown labels (1 without a label kept)"
    )


def test_labels_may_be_given_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    labels = LabelSet(("dog", "cat", "car"), readable={"car": "motor car"})
    data = read_coco(tmp_path / "images", path, labels=labels)
    assert data.labels is labels
    assert data.target.tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("car", "cat", "dog", "cow"), "categories: unknown label 'cow', the nearest known one is 'dog'"),
        (
            ("car", "dog"),
            "image 10: unknown label 'cat', the nearest known one is 'car'; labels has to name it, and unseen can "
            "leave it out after that",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    path = write(tmp_path, content())
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path / "images", path, labels=LabelSet(names))
    assert str(caught.value) == f"{path}: {message}"


def test_missing_pictures(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    (tmp_path / "images" / "b.jpg").unlink()
    assert len(read_coco(tmp_path / "images", path)) == 2, "it has no label, so nobody asks for it"
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path / "images", path, keep_unlabelled=True)
    file = tmp_path / "images" / "b.jpg"
    assert str(caught.value) == f"{file}: expected the picture of {path}: image 20, found no such file"
    data = read_coco(tmp_path / "images", path, keep_unlabelled=True, check_files=False)
    with pytest.raises(DataError, match=r"b\.jpg: expected a picture, found no such file"):
        data[2]


Damage = Callable[[dict[str, Any]], object]
BOX = "annotations[1]: expected 'bbox' to "


def setter(kind: str, position: int, key: str, value: object) -> Damage:
    return lambda content: content[kind][position].__setitem__(key, value)


def remover(kind: str, position: int, key: str) -> Damage:
    return lambda content: content[kind][position].pop(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("images"), "expected the key 'images', found 'info', 'categories', 'annotations'"),
        (lambda c: c.pop("annotations"), "expected the key 'annotations', found 'info', 'images', 'categories'"),
        (lambda c: c.clear(), "expected the key 'images', found no keys"),
        (lambda c: c.update(images={}), "expected 'images' to be a list, found a dict"),
        (lambda c: c.update(categories=7), "expected 'categories' to be a list, found 7"),
        (lambda c: c.update(images=[3]), "images[0]: expected an object, found 3"),
        (lambda c: c.update(categories=[]), "categories: names: expected at least one label, got none"),
        (remover("images", 1, "id"), "images[1]: expected the key 'id', found 'file_name'"),
        (remover("categories", 1, "name"), "categories[1]: expected the key 'name', found 'id'"),
        (
            remover("annotations", 3, "image_id"),
            "annotations[3]: expected the key 'image_id', found 'id', 'category_id'",
        ),
        (setter("images", 0, "id", ""), "images[0]: expected 'id' to be an integer or a text, found ''"),
        (setter("images", 0, "id", 30.0), "images[0]: expected 'id' to be an integer or a text, found 30.0"),
        (setter("images", 0, "id", True), "images[0]: expected 'id' to be an integer or a text, found True"),
        (setter("images", 2, "id", "30"), "images[2]: expected every image once, found the id 30 again"),
        (setter("images", 2, "id", 30), "images[2]: expected every image once, found the id 30 again"),
        (setter("categories", 2, "id", 3), "categories[2]: expected every category once, found the id 3 again"),
        (
            setter("categories", 2, "name", "dog"),
            "categories: expected one category of a name, found 'dog' with the ids 17 and 18; "
            "set same_names to 'merge' to make one label of them",
        ),
        (
            setter("categories", 2, "name", " "),
            "categories[2]: expected the name of a category without white space around it, found ' '",
        ),
        (setter("categories", 2, "name", 5), "categories[2]: expected the name of a category, found 5"),
        (
            setter("categories", 2, "name", "\ud800"),
            "categories[2]: expected the name of a category in Unicode, found '\\ud800'",
        ),
        (
            setter("annotations", 0, "image_id", 99),
            "annotations[0]: expected the id of one of the images, found 99; "
            "set strays to 'drop' to leave such annotations out",
        ),
        (
            setter("annotations", 0, "category_id", 1),
            "annotations[0]: expected the id of one of the categories, found 1",
        ),
        (setter("annotations", 1, "bbox", [1, 2, 3]), BOX + "be four finite numbers, found [1, 2, 3]"),
        (setter("annotations", 1, "bbox", [1, 2, 3, 4, 5]), BOX + "be four finite numbers, found a list"),
        (setter("annotations", 1, "bbox", {}), BOX + "be four finite numbers, found a dict"),
        (setter("annotations", 1, "bbox", [1, 2, 3, "4"]), BOX + 'be four finite numbers, found [1, 2, 3, "4"]'),
        (setter("annotations", 1, "bbox", [1, 2, 3, True]), BOX + "be four finite numbers, found [1, 2, 3, true]"),
        (
            setter("annotations", 1, "bbox", [1, 2, 3, float("nan")]),
            BOX + "be four finite numbers, found [1, 2, 3, NaN]",
        ),
        (setter("annotations", 1, "bbox", [1, 2, -3, 4]), BOX + "have no negative size, found -3 x 4"),
        (setter("annotations", 1, "iscrowd", 2), "annotations[1]: expected 'iscrowd' to be 0 or 1, found 2"),
        (setter("annotations", 1, "iscrowd", None), "annotations[1]: expected 'iscrowd' to be 0 or 1, found None"),
    ],
)
def test_refusals_name_the_file_and_the_place(tmp_path: Path, damage: Damage, message: str) -> None:
    broken = content()
    damage(broken)
    path = write(tmp_path, broken)
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path / "images", path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c.jpg", "expected every file once, found 'c.jpg' again"),
        ("./c.jpg", "expected every file once, found 'c.jpg' again"),
        ("../c.jpg", "expected a picture inside its folder, found '../c.jpg'"),
        ("/etc/x.jpg", "expected a picture inside its folder, found '/etc/x.jpg'"),
        (".", "expected a picture inside its folder, found '.'"),
        ("..\\c.jpg", "expected a picture inside its folder, found '../c.jpg'"),
        ("\\\\host\\c.jpg", "expected a picture inside its folder, found '//host/c.jpg'"),
        ("C:\\c.jpg", "expected a picture's path with / between folders, found 'C:/c.jpg'"),
        ("C:c.jpg", "expected a picture's path with / between folders, found 'C:c.jpg'"),
        ("a\0", "expected the name of a picture without control characters, found 'a\\x00'"),
        ("x" * 2000, "expected the name of a picture in at most 1,000 characters, found 2,000"),
    ],
)
def test_file_names_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    broken = content()
    broken["images"][2]["file_name"] = name
    path = write(tmp_path, broken)
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path / "images", path)
    assert str(caught.value) == f"{path}: images[2]: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected annotations as JSON, but Expecting value: line 1 column 1 (char 0)"),
        (b'{"images": [', "expected annotations as JSON, but Expecting value: line 1 column 13 (char 12)"),
        (b"[" * 200_000, "expected annotations as JSON, found far too many brackets within brackets"),
        (b'{"a":' * 200_000, "expected annotations as JSON, found far too many brackets within brackets"),
        (b"[1]", "expected an object with 'images', 'categories', 'annotations', found a list"),
        (b"\n\xff{}", "line 2: expected annotations in UTF-8, found other bytes"),
        (b'{"a": "\0"}', "line 1: expected annotations, found a NUL byte"),
        (b'{"a": ' + b"1" * 5000 + b"}", "expected annotations as JSON, but Exceeds the limit"),
    ],
)
def test_text_that_is_no_annotation_file(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, content())
    monkeypatch.setattr(coco, "MAX_JSON_BYTES", path.stat().st_size)
    assert len(read_coco(tmp_path / "images", path)) == 2
    monkeypatch.setattr(coco, "MAX_JSON_BYTES", 100)
    with pytest.raises(DataError, match=r"mine\.json: expected annotations of at most 100 bytes, found more"):
        read_coco(tmp_path / "images", path)
    with pytest.raises(DataError, match=r"no\.json: expected annotations, but No such file or directory"):
        read_coco(tmp_path / "images", tmp_path / "no.json")


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
    with pytest.raises(DataError, match="instances_mine: expected at least one picture, found none"):
        read_coco(tmp_path, path)
    path = write(tmp_path, {"images": [], "annotations": [], "categories": []})
    with pytest.raises(DataError, match=r"mine\.json: categories: names: expected at least one label, got none"):
        read_coco(tmp_path, path)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp"], exclude_characters="\\/:."),
    min_size=1,
    max_size=8,
).filter(lambda name: name == name.strip())


@given(data=st.data())
def test_what_is_written_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = data.draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    files = data.draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    numbers = data.draw(st.permutations(range(1, 91)))
    sets = {file: data.draw(st.sets(st.sampled_from(names))) for file in files}
    categories = dict(zip(names, numbers, strict=False))
    images = dict(zip(files, data.draw(st.permutations(range(1000))), strict=False))
    objects = [
        {"image_id": images[file], "category_id": categories[name], "bbox": [0, 0, 1, 1]}
        for file in files
        for name in sorted(sets[file])
        for _ in range(data.draw(st.integers(1, 2)))
    ]
    path = tmp_path_factory.getbasetemp() / "round.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": number, "file_name": file} for file, number in images.items()],
                "categories": [{"id": number, "name": name} for name, number in categories.items()],
                "annotations": data.draw(st.permutations(objects)),
            }
        )
    )
    read = read_coco("nowhere", path, keep_unlabelled=True, check_files=False)
    assert read.labels.names == tuple(sorted(names, key=categories.__getitem__))
    assert list(present(read).items()) == list(sets.items())


def test_the_labels_are_the_official_ones(shared: Path) -> None:
    categories = json.loads((shared / "data" / "labels" / "categories.json").read_text())
    assert COCO_LABELS.names == tuple(item["name"] for item in sorted(categories, key=lambda item: item["id"]))
    assert len(COCO_LABELS) == 80
    assert COCO_LABELS.texts == COCO_LABELS.names


@pytest.mark.parametrize(("split", "images", "without", "marks"), [("train", 2253, 5, 8039), ("val", 1170, 0, 4144)])
def test_real_annotations(shared: Path, split: str, images: int, without: int, marks: int) -> None:
    folder = shared / "data" / "coco-mini"
    path = folder / "annotations" / f"instances_{split}.json"
    everything = read_coco(folder / "images", path, keep_unlabelled=True)
    data = read_coco(folder / "images", path)
    assert (len(everything), len(data)) == (images, images - without)
    assert data.labels == COCO_LABELS
    assert f"{without} without a label left out" in data.summary()

    raw = json.loads(path.read_text())
    pairs = {(item["image_id"], item["category_id"]) for item in raw["annotations"]}
    assert len(pairs) == marks == int(data.target.sum()) == int(everything.target.sum())

    # Every picture against the official labels of all of COCO, which list the pictures that have one.
    ids = {item["id"]: item["name"] for item in raw["categories"]}
    with gzip.open(shared / "data" / "labels" / "coco14_image_labels.csv.gz", "rt") as file:
        official = {int(row["image_id"]): row["category_ids"].split() for row in csv.DictReader(file)}
    numbers = {item["file_name"]: item["id"] for item in raw["images"]}
    for file, names in present(everything).items():
        assert names == {ids[int(number)] for number in official.get(numbers[file], [])}, file

    coarse = {item["image_id"] for item in raw["annotations"] if item.get("image_level_only")}
    assert len(coarse) == (199 if split == "train" else 0)
    assert {file for file, number in numbers.items() if number in coarse} <= set(data.identifiers)


def test_real_pictures_are_read(shared: Path) -> None:
    folder = shared / "data" / "coco-mini"
    data = read_coco(folder / "images", folder / "annotations" / "instances_val.json")
    for index in range(0, len(data), 200):
        assert min(data[index].image.shape[1:]) == 224
