"""Data sets in the layout of Pascal VOC as labelling tools write them."""

import re
from pathlib import Path

import pytest

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers.voc import VOCRules, read_annotation, read_voc

FIND = VOCRules(find_labels=True)
BESIDE = VOCRules(picture_folder=".", annotation_folder=".", find_labels=True)


def describe(path: Path, *names: str, filename: str = "", difficult: str = "0") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(f"<object><name>{name}</name><difficult>{difficult}</difficult></object>" for name in names)
    path.write_text(f"<annotation><filename>{filename}</filename>{items}</annotation>")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write(folder: Path, pictures: dict[str, tuple[str, ...]], ending: str = ".jpg") -> Path:
    """Write a data set without a year whose list `all` holds the pictures."""
    for name, labels in pictures.items():
        describe(folder / "Annotations" / f"{name}.xml", *labels)
        touch(folder / "JPEGImages" / f"{name}{ending}")
    touch(folder / "ImageSets" / "Main" / "all.txt")
    (folder / "ImageSets" / "Main" / "all.txt").write_text("".join(f"{name}\n" for name in pictures))
    return folder


def read(root: Path, rules: VOCRules = FIND, split: str | None = "all") -> LabelledImages:
    return read_voc(root, split=split, rules=rules, train=True)


def refusal(root: Path, rules: VOCRules = FIND, split: str | None = "all") -> str:
    with pytest.raises(DataError) as caught:
        read(root, rules, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOC2007", "VOCdevkit/VOC2007"])
def test_the_folder_may_have_a_year_or_none(tmp_path: Path, below: str) -> None:
    write(tmp_path / below, {"a/x 1": ("owl",), "b": ()})
    data = read(tmp_path)
    assert data.identifiers == ("a/x 1", "b")
    assert data.target.tolist() == [[1], [0]]


def test_another_year_is_named(tmp_path: Path) -> None:
    write(tmp_path / "VOC2012", {"b": ("owl",)})
    assert refusal(tmp_path).endswith("found none; set year to '2012'")
    assert refusal(tmp_path / "VOC2012").endswith("expected the folder VOC2007, found that of 2012; set year to '2012'")


def test_other_folders_are_named(tmp_path: Path) -> None:
    describe(tmp_path / "boxes" / "1.xml", "owl")
    touch(tmp_path / "shots" / "1.png")
    hint = "there are XML files in 'boxes' and pictures in 'shots': "
    assert hint + "set annotation_folder to 'boxes' and picture_folder to 'shots'" in refusal(tmp_path)
    rules = VOCRules(annotation_folder="boxes", picture_folder="shots", find_labels=True)
    assert refusal(tmp_path, rules) == (
        f"{tmp_path}: expected the folder ImageSets/Main in it, found none; set list_folder to null for all "
        f"annotations, and test_share to 0.2 to set a fifth of them aside"
    )
    assert read(tmp_path, rules, None).identifiers == ("1",)


def test_annotations_beside_their_pictures(tmp_path: Path) -> None:
    for name in ("IMG 2", "IMG 10", "sub/IMG 1"):
        describe(tmp_path / f"{name}.xml", name[:3])
        touch(tmp_path / f"{name}.JPEG")
    touch(tmp_path / "not labelled.jpg")
    touch(tmp_path / "classes.txt")
    data = read(tmp_path, BESIDE, None)
    assert data.identifiers == ("IMG 10", "IMG 2", "sub/IMG 1")
    assert data.name == tmp_path.name
    touch(tmp_path / "empty" / "a.txt")
    rules = VOCRules(annotation_folder="empty", picture_folder=".")
    assert refusal(tmp_path, rules, None).endswith("empty: expected annotations, whose names end in .xml, found none")


def test_the_only_list_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"1": ("owl",)})
    way = "; set train_split to 'all' and test_share to 0.2, which sets a fifth of it aside"
    assert refusal(folder, split="trainval").endswith("expected the list of the split 'trainval', found all" + way)
    touch(folder / "ImageSets" / "Main" / "other.txt")
    assert refusal(folder, split="trainval").endswith("all, other; set train_split and test_split to two of them")
    for path in (folder / "ImageSets" / "Main").iterdir():
        path.unlink()
    assert refusal(folder).endswith("found no lists; set list_folder to null for all annotations")


def test_names_of_windows_in_a_list(tmp_path: Path) -> None:
    folder = write(tmp_path, {"day 1/a": ("owl",)})
    listed = folder / "ImageSets" / "Main" / "all.txt"
    listed.write_text("day 1\\a\r\n", newline="")
    assert read(folder).identifiers == ("day 1/a",)
    describe(folder / "Annotations" / "day 1\\a.xml", "owl")
    assert "is the name of a file too" in refusal(folder)
    listed.write_text("day 1/../../a\n")
    assert "expected a picture inside its folder" in refusal(folder)


@pytest.mark.parametrize("ending", [".png", ".JPG", ".webp", ".Bmp"])
def test_pictures_of_any_ending(tmp_path: Path, ending: str) -> None:
    folder = write(tmp_path, {"v1.2": ("owl",), "s/3": ("wren",)}, ending)
    assert [path.name for path in read(folder).paths] == [f"v1.2{ending}", f"3{ending}"]


def test_several_pictures_of_a_name_are_told_apart_by_the_annotation(tmp_path: Path) -> None:
    folder = write(tmp_path, {"s/3": ("wren",)}, ".png")
    touch(folder / "JPEGImages" / "s" / "3.webp")
    assert refusal(folder) == (
        f"{folder}/JPEGImages/s/3: expected one picture of this name, found '3.png', '3.webp', and <filename> '' in "
        f"the annotation is none of them"
    )
    for given in ("3.webp", "s/3.webp", "C:\\photos\\s\\3.webp"):
        describe(folder / "Annotations" / "s" / "3.xml", "wren", filename=given)
        assert read(folder).paths == (folder / "JPEGImages" / "s" / "3.webp",)


def test_a_picture_of_another_name_is_found_by_the_annotation(tmp_path: Path) -> None:
    folder = write(tmp_path, {"1": ("wren",), "2": ("owl",)})
    for name in ("1", "2"):
        (folder / "JPEGImages" / f"{name}.jpg").unlink()
    touch(folder / "JPEGImages" / "wren one.tif")
    describe(folder / "Annotations" / "1.xml", "wren", filename="wren one.tif")
    for given in ("", "none.jpg", "../x.jpg", "/etc/hosts", "x" * 5000):
        describe(folder / "Annotations" / "2.xml", "owl", filename=given)
        assert refusal(folder) == f"{folder}/JPEGImages/2.jpg: expected the picture of '2', found no such file"
    describe(folder / "Annotations" / "2.xml", "owl", filename="wren one.tif")
    assert "expected the picture of one annotation, found '1' and '2'" in refusal(folder)
    touch(folder / "JPEGImages" / "2.gif")
    assert [path.name for path in read(folder).paths] == ["wren one.tif", "2.gif"]


def test_a_picture_outside_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"1": ("wren",)})
    touch(tmp_path / "out.png")
    (folder / "JPEGImages" / "1.jpg").unlink()
    (folder / "JPEGImages" / "1.png").symlink_to(tmp_path / "out.png")
    assert "expected the picture inside" in refusal(folder)


MAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nsnowy: owl:1,2,3:beak:\n\nwren:::\n"


def test_labels_of_cvat(tmp_path: Path) -> None:
    folder = write(tmp_path, {"1": ("wren",), "2": ("snowy: owl",)})
    (folder / "labelmap.txt").write_text(MAP)
    data = read(folder, VOCRules())
    assert data.labels.names == ("background", "snowy: owl", "wren")
    assert data.note == "difficult: unknown, 1 label without an annotation kept: 'background'"
    data = read(folder, VOCRules(unused="drop"))
    assert data.labels.names == ("snowy: owl", "wren")
    assert data.target.tolist() == [[0, 1], [1, 0]]
    assert f"{folder}/labelmap.txt: expected every label to be annotated" in refusal(folder, VOCRules(unused="refuse"))
    assert read(folder).labels.names == ("snowy: owl", "wren"), "found in the annotations"
    (folder / "labels.json").write_text('{"names": ["wren", "snowy: owl"]}')
    assert read(folder, VOCRules()).labels.names == ("wren", "snowy: owl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wren\n", "line 1: expected label:color:parts:actions, found 'wren'; set labels to a list"),
        ("#\n :1:2:3\n", "line 2: expected the name of a label without white space around it, found ''"),
        ("a:::\na:::\n", "names: expected unique labels, got 'a' more than once"),
        ("#\n", "names: expected at least one label, got none"),
    ],
)
def test_label_maps_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = write(tmp_path, {"1": ("wren",)})
    (folder / "labelmap.txt").write_text(text)
    assert refusal(folder, VOCRules()) == f"{folder}/labelmap.txt: {message}"
    assert read(folder).labels.names == ("wren",)


def test_labels_are_found_in_all_annotations_of_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, {"1": ("wren",)})
    describe(folder / "Annotations" / "in no list.xml", "owl")
    assert read(folder).labels.names == ("owl", "wren")
    assert read(folder, VOCRules(find_labels=True, unused="drop")).labels.names == ("wren",)
    (folder / "Annotations" / "in no list.xml").unlink()
    describe(folder / "Annotations" / "1.xml")
    assert refusal(folder) == f"{folder}/Annotations: expected at least one label, found none"


def test_labels_that_are_not_listed_name_the_options(tmp_path: Path) -> None:
    folder = write(tmp_path, {"1": ("wren",)})
    find = "set find_labels to true for the labels that are in the annotations, or labels to a list"
    assert refusal(folder, VOCRules()).endswith(
        f"1.xml: unknown label 'wren', the nearest known one is 'train'; {find}"
    )
    (folder / "labelmap.txt").write_text("owl:::\n")
    assert refusal(folder, VOCRules()).endswith(f"; labelmap.txt has to name it, else {find}")
    for rules, way in (
        (VOCRules(), "labels has to name it, and unseen can leave it out after that"),
        (VOCRules(unused="drop"), "set unused to 'keep', which keeps labels that no training picture has"),
    ):
        with pytest.raises(DataError, match=f"; {re.escape(way)}$"):
            read_voc(folder, split="all", labels=LabelSet(("owl",)), rules=rules, train=False)


@pytest.mark.parametrize(
    ("word", "state"),
    [("True", 0), ("false", 1), ("YES", 0), ("no", 1), ("Unspecified", 1), ("unspecified", 1), (" 1 ", 0), ("", 1)],
)
def test_words_for_difficult(tmp_path: Path, word: str, state: int) -> None:
    path = tmp_path / "1.xml"
    describe(path, "owl", difficult=word)
    path.write_text(path.read_text().replace("<name>", "<truncated>Unspecified</truncated><name>"))
    assert read_annotation(path) == {"owl": state}


@pytest.mark.usefixtures("unchecked")
def test_rules_are_checked() -> None:
    with pytest.raises(DataError, match="unused: expected one of 'keep', 'drop', 'refuse', got 'maybe'"):
        VOCRules(unused="maybe")  # type: ignore[arg-type]
