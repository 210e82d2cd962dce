"""The parts of a data set: what is set aside, what is hidden."""

import csv
from pathlib import Path

import pytest
import torch
from helpers.training_toys import write_voc
from PIL import Image

from pvlr.data.batch import DataError
from pvlr.train.config import ConfigError
from pvlr.train.data_config import TableData, VOCData


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    lists = write_voc(folder, train=60, test=6) / "ImageSets" / "Main"
    (lists / "val.txt").write_text("000060\n000061\n")
    return folder


def test_without_a_word_there_is_no_validation(voc: Path) -> None:
    splits = VOCData(root=str(voc)).splits(0)
    assert (len(splits.train), len(splits.test), splits.validation) == (60, 6, None)


def test_a_share_of_the_training_pictures_is_set_aside_by_seed_and_name(voc: Path) -> None:
    data = VOCData(root=str(voc), val_share=0.3)
    splits, again, other = data.splits(0), data.splits(0), data.splits(1)
    assert splits.validation is not None
    train, aside = set(splits.train.identifiers), set(splits.validation.identifiers)
    assert not train & aside
    assert train | aside == set(VOCData(root=str(voc)).splits(0).train.identifiers)
    assert len(aside) == 18
    found, whole = (part.target.sum(dim=0) for part in (splits.validation, VOCData(root=str(voc)).splits(0).train))
    assert bool(((found - 0.3 * whole).abs() < 2).all()), "of each label as of the pictures"
    assert again.validation.identifiers == splits.validation.identifiers  # type: ignore[union-attr]
    assert set(other.validation.identifiers) != aside  # type: ignore[union-attr]
    assert len(splits.test) == 6


def test_a_split_of_its_own_is_read_with_the_same_labels(voc: Path) -> None:
    splits = VOCData(root=str(voc), val_split="val").splits(0)
    assert splits.validation is not None
    assert splits.validation.identifiers == ("000060", "000061")
    assert splits.validation.labels == splits.train.labels
    assert len(splits.train) == 60
    unseen = VOCData(root=str(voc), val_split="val", unseen=("green",)).splits(0)
    assert {part.labels.names for part in unseen if part is not None} == {("red", "blue")}


def test_hidden_labels_are_hidden_in_what_was_set_aside_and_not_in_other_splits(voc: Path) -> None:
    whole = VOCData(root=str(voc), keep_labels=0.3).splits(0)
    aside = VOCData(root=str(voc), keep_labels=0.3, val_share=0.3).splits(0)
    named = VOCData(root=str(voc), keep_labels=0.3, val_split="val").splits(0)
    assert aside.validation is not None
    assert named.validation is not None
    for part in (aside.train, aside.validation):
        rows = [whole.train.identifiers.index(name) for name in part.identifiers]
        assert torch.equal(part.known, whole.train.known[rows]), "the same labels, whatever is set aside"
    assert 0.1 < aside.validation.known.float().mean() < 0.5
    assert bool(named.validation.known.all())
    assert bool(aside.test.known.all())


def test_shares_for_test_and_validation_are_drawn_apart(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.jpg").touch()
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "labels"], *([f"{number}.jpg", "cat"] for number in range(200))])
    data = TableData(images=str(tmp_path), table=str(tmp_path / "labels.csv"), test_share=0.3, val_share=0.3)
    train, test, validation = data.splits(0)
    assert validation is not None
    parts = [set(part.identifiers) for part in (train, test, validation)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 200
    assert [len(part) for part in parts] == [98, 60, 42]


def test_pictures_that_are_not_split_are_refused_with_the_setting_that_splits_them(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").touch()
    (tmp_path / "labels.csv").write_text("file,labels\ncat/1.jpg,cat\n")
    way = r"; data\.test_share sets a share of all pictures aside instead$"
    with pytest.raises(DataError, match="labels.csv: line 2: expected 'split' to say the split, found none" + way):
        TableData(images=str(tmp_path), table=str(tmp_path / "labels.csv")).splits(0)
    with pytest.raises(DataError, match=f"{tmp_path}: expected a folder 'train' in it, found none" + way):
        TableData(images=str(tmp_path)).splits(0)


@pytest.mark.usefixtures("unchecked")
def test_two_ways_to_validate_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.val_share: expected none with data\.val_split='val'"):
        VOCData(val_split="val", val_share=0.1)
    with pytest.raises(ConfigError, match=r"data\.val_split: expected null with test_share, give val_share, got 'val'"):
        TableData(val_split="val", test_share=0.1)
    with pytest.raises(ConfigError, match=r"data\.val_share: expected a finite number > 0 and < 1, got 1\.0"):
        VOCData(val_share=1.0)
    with pytest.raises(ConfigError, match=r"data\.val_split: expected a non-empty text, got ''"):
        VOCData(val_split="")


def test_labels_of_a_table_are_read_from_a_file_too(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "salt, pepper"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / label / "1.png")
    (tmp_path / "labels.txt").write_text("salt, pepper\ndog\ncat\n")
    data = TableData(images=str(tmp_path), labels=f"@{tmp_path / 'labels.txt'}")
    for part in data.splits(0)[:2]:
        assert part is not None
        assert part.labels.names == ("salt, pepper", "dog", "cat")
        assert part.present.sum(dim=0).tolist() == [1, 0, 1]
    assert TableData(images=str(tmp_path), labels=("cat", "salt, pepper")).splits(0).train.labels.names[0] == "cat"
    with pytest.raises(ConfigError, match=r"^data\.labels: expected names without quotes"):
        TableData(images=str(tmp_path), labels='"salt, pepper", cat').splits(0)


def test_every_way_to_read_has_the_limit_of_pixels(voc: Path, tmp_path: Path) -> None:
    data = VOCData(root=str(voc), max_pixels=99, shots=1, val_share=0.3, keep_labels=0.5)
    assert data.read("test", train=False).max_pixels == 99
    assert [part.max_pixels for part in data.splits(0) if part is not None] == [99, 99, 99]
    for name in ("1.png", "2.png", "3.png", "4.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "x.csv").write_text("file,labels\n1.png,a\n2.png,a\n3.png,b\n4.png,b\n")
    table = TableData(images=str(tmp_path), table=str(tmp_path / "x.csv"), test_share=0.5, max_pixels=99)
    assert [part.max_pixels for part in table.splits(0) if part is not None] == [99, 99]
