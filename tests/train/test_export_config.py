"""Configurations for exports of labelling tools: one file for all splits, a folder per split, own labels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvlr.cli.command import command
from pvlr.data.batch import DataError
from pvlr.train.config import ConfigError, config_from_json, config_to_json
from pvlr.train.data_config import COCOData, DataConfig, VOCData

NAMES = ("ash", "elm", "oak")


def coco(path: Path, images: Path, count: int = 20, prefix: str = "") -> Path:
    """Write a file of COCO in which picture i has the label i modulo 3."""
    images.mkdir(parents=True, exist_ok=True)
    files = [f"{number:02}.jpg" for number in range(count)]
    for file in files:
        (images / file).touch()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": number, "file_name": prefix + file} for number, file in enumerate(files)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(("trees", *NAMES))],
        "annotations": [{"image_id": number, "category_id": 1 + number % 3, "bbox": []} for number in range(count)],
    }
    path.write_text(json.dumps(content))
    return path


def xml(path: Path, *names: str, difficult: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(f"<object><name>{name}</name><difficult>{difficult}</difficult></object>" for name in names)
    path.write_text(f"<annotation>{items}</annotation>")
    path.with_suffix(".png").touch()


def refusal(data: DataConfig) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        data.splits(0)
    return str(caught.value)


def test_one_file_of_coco_for_all_splits(tmp_path: Path) -> None:
    coco(tmp_path / "result.json", tmp_path / "images", prefix="images\\")
    data = COCOData(root=str(tmp_path), images=".", annotations="result.json", test_share=0.3, val_share=0.2)
    train, test, validation = data.splits(0)
    assert validation is not None
    parts = [set(part.identifiers) for part in (train, test, validation)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert all(parts)
    assert train.labels == test.labels == validation.labels
    assert data.splits(0).test.identifiers == test.identifiers
    one = COCOData(root=str(tmp_path), images=".", annotations="result.json")
    assert refusal(one) == (
        "data.annotations: expected {split} in it, which stands for the split, got 'result.json'; "
        "set test_share to 0.2 to set a fifth of its pictures aside"
    )


def test_a_folder_per_split_with_its_own_file(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        coco(tmp_path / split / "_annotations.coco.json", tmp_path / split, count=6)
    assert refusal(COCOData(root=str(tmp_path))).endswith(
        "found no such file; set annotations to '{split}/_annotations.coco.json', and train_split and test_split to "
        "two of 'test', 'train', 'valid'"
    )
    given = {"annotations": "{split}/_annotations.coco.json", "train_split": "train", "test_split": "test"}
    splits = COCOData(root=str(tmp_path), val_split="valid", unused="drop", **given).splits(0)  # type: ignore[arg-type]
    assert [part.labels.names for part in splits if part is not None] == [NAMES] * 3


@pytest.mark.parametrize("below", ["", "images", "photos/images"])
def test_the_folder_of_pictures_is_named_where_it_can_be_found(tmp_path: Path, below: str) -> None:
    path = coco(tmp_path / "photos" / "all.json", tmp_path / below, count=4)
    data = COCOData(root=str(tmp_path), annotations="photos/all.json", test_share=0.5)
    assert refusal(data).endswith(f"{path}: image 0, found no such file; set images to {below or '.'!r}")
    (tmp_path / below / "00.jpg").unlink()
    assert refusal(data).endswith(f"{path}: image 0, found no such file")


def test_annotation_files_are_named(tmp_path: Path) -> None:
    assert refusal(COCOData(root=str(tmp_path))).endswith(
        "instances_train2014.json: expected annotations, found no such file"
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").touch()
    assert refusal(COCOData(root=str(tmp_path))).endswith(
        "set annotations to one of 'one.json', 'two.json', with {split} for what differs between splits"
    )


def test_labels_in_a_list_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    coco(tmp_path / "x.json", tmp_path / "images")
    Path("mine.txt").write_text("oak\nash\nelm\n")
    base: dict[str, Any] = {"root": ".", "images": "images", "annotations": "x.json", "test_share": 0.4}
    for labels, names in (
        ("@mine.txt", ("oak", "ash", "elm")),
        ("oak,elm,ash", ("oak", "elm", "ash")),
        (("elm", "oak", "ash"), ("elm", "oak", "ash")),
    ):
        data = COCOData(labels=labels, **base)
        assert [part.labels.names for part in data.splits(0)[:2]] == [names] * 2
        assert config_from_json(COCOData, json.loads(json.dumps(config_to_json(data)))) == data
    for labels, message in (
        ("@none.txt", "none.txt: expected a file of labels, one a line, but No such file or directory"),
        (("oak", "oak"), "data.labels: expected unique labels, got 'oak' more than once"),
        ("oak,", "data.labels: expected names with commas between, @FILE with one a line, or one of voc, coco"),
        (("oak",), "x.json: image 0: unknown label 'ash', the nearest known one is 'oak'; labels has to name it"),
    ):
        assert message in refusal(COCOData(labels=labels, **base))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: VOCData(labels=("a",), find_labels=True),
            "data.find_labels: expected false with data.labels, got true",
        ),
        (lambda: VOCData(labels="a", unused="drop"), "data.unused: expected keep with data.labels, which lists the"),
        (lambda: COCOData(labels=("a",), unused="refuse"), "data.unused: expected keep with data.labels, which lists"),
        (lambda: COCOData(unused="no"), "data.unused: expected one of 'keep', 'drop', 'refuse', got 'no'"),
        (lambda: COCOData(same_names="no"), "data.same_names: expected one of 'refuse', 'merge', got 'no'"),
        (lambda: VOCData(test_share=0.0), "data.test_share: expected a finite number > 0 and < 1, got 0.0"),
        (
            lambda: COCOData(test_share=0.1, val_split="v"),
            "data.val_split: expected null with test_share, give val_share",
        ),
        (lambda: VOCData(list_folder=""), "data.list_folder: expected a non-empty text, got ''"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_do_not_fit_are_refused(made: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made()
    assert str(caught.value).startswith(message)


def test_annotations_beside_pictures_with_and_without_folders_of_splits(tmp_path: Path) -> None:
    for number in range(12):
        xml(tmp_path / ("train" if number < 8 else "valid") / f"{number}.xml", NAMES[number % 3])
    beside: dict[str, Any] = {"root": str(tmp_path), "list_folder": None, "find_labels": True}
    own = VOCData(
        picture_folder="{split}", annotation_folder="{split}", train_split="train", test_split="valid", **beside
    )
    assert [len(part) for part in own.splits(0)[:2]] == [8, 4]
    share = VOCData(picture_folder=".", annotation_folder=".", test_share=0.25, **beside).splits(0)
    assert set(share.train.identifiers) | set(share.test.identifiers) == {
        f"{'train' if number < 8 else 'valid'}/{number}" for number in range(12)
    }
    assert refusal(VOCData(picture_folder=".", annotation_folder=".", **beside)).startswith(
        "data.annotation_folder: expected {split} in it, which stands for the split, got '.'; set test_share to 0.2"
    )


@pytest.mark.parametrize(
    ("difficult", "in_training", "known_in_test"),
    [("unknown", 0, False), ("A", 1, False), ("B", 0, False), ("C", 0, True)],
)
def test_what_is_set_aside_is_read_by_the_convention_of_a_test(
    tmp_path: Path, difficult: Any, in_training: int, known_in_test: bool
) -> None:
    for number in range(10):
        xml(tmp_path / "both" / f"{number}.xml", "oak", difficult=1)
    data = VOCData(
        root=str(tmp_path), picture_folder="both", annotation_folder="both", list_folder=None, labels=("oak",),
        test_share=0.3, difficult=difficult,
    )  # fmt: skip
    train, test, _ = data.splits(0)
    assert set(train.target.flatten().tolist()) == {in_training}
    assert bool(train.known.all()) == (difficult != "unknown")
    assert set(test.target.flatten().tolist()) == {0}
    assert set(test.known.flatten().tolist()) == {known_in_test}
    assert not set(train.identifiers) & set(test.identifiers)
    assert len(train) + len(test) == 10


def test_options_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def show(*, data: DataConfig) -> None:
        """Show the labels.

        Args:
            data: The data.
        """
        print(repr(data.labels))  # type: ignore[attr-defined]

    (tmp_path / "x.yaml").write_text("data:\n  labels: [a, b]\n")
    for words, said in (
        ([], "None"),
        (["--data.labels", "[oak, elm tree]"], "('oak', 'elm tree')"),
        (["--data.labels=@mine.txt"], "'@mine.txt'"),
        (["--data.labels", "null"], "None"),
        ([f"--config={tmp_path / 'x.yaml'}"], "('a', 'b')"),
        ([f"--config={tmp_path / 'x.yaml'}", "--data.labels", "null"], "None"),
    ):
        for kind in (VOCData, COCOData):
            assert command(show, words, data=kind) == 0
            assert capsys.readouterr().out == f"{said}\n"
