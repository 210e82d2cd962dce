"""Pascal VOC's targets against its official lists: all 9,963 images, all 20 labels, every convention."""

import gzip
import json
import tarfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pvlr.data.voc import VOC_LABELS, read_voc

CONVENTIONS = ("unknown", "A", "B", "C")


@pytest.fixture
def lists(shared: Path) -> dict[str, str]:
    """File name under `ImageSets/Main` to its text."""
    with tarfile.open(shared / "data" / "labels" / "VOC2007_ImageSets_Main_full.tar.gz") as archive:
        files = [member for member in archive if member.isfile()]
        return {Path(member.name).name: archive.extractfile(member).read().decode() for member in files}  # type: ignore[union-attr]


def official(lists: dict[str, str], split: str) -> tuple[list[str], Tensor]:
    """Images of a split and their marks, `n c`: 1 present, 0 only difficult objects, -1 absent."""
    identifiers = lists[f"{split}.txt"].split()
    columns = []
    for name in VOC_LABELS:
        marks = dict(line.split() for line in lists[f"{name}_{split}.txt"].splitlines())
        columns.append([int(marks[identifier]) for identifier in identifiers])
    return identifiers, torch.tensor(columns).T


def expected(marks: Tensor, difficult: str, train: bool) -> tuple[Tensor, Tensor]:
    """The four conventions, mark by mark: what a label of difficult objects only becomes."""
    hard = {
        "unknown": (0.0, False),
        "A": (1.0, True) if train else (0.0, False),
        "B": (0.0, True) if train else (0.0, False),
        "C": (0.0, True),
    }[difficult]
    meaning = {1: (1.0, True), 0: hard, -1: (0.0, True)}
    pairs = [[meaning[mark] for mark in row] for row in marks.tolist()]
    target = torch.tensor([[value for value, _ in row] for row in pairs])
    return target, torch.tensor([[known for _, known in row] for row in pairs])


def check(root: Path, split: str, identifiers: list[str], marks: Tensor) -> None:
    train = split != "test"
    assert set(marks.unique().tolist()) == {-1, 0, 1}
    rows = {identifier: row for row, identifier in enumerate(identifiers)}
    for difficult in CONVENTIONS:
        data = read_voc(root, split=split, difficult=difficult, train=train)
        target, known = expected(marks[[rows[identifier] for identifier in data.identifiers]], difficult, train)
        assert torch.equal(data.target, target), difficult
        assert torch.equal(data.known, known), difficult


@pytest.mark.parametrize("split", ["trainval", "train", "val", "test"])
def test_real_annotations_agree_with_the_official_lists(shared: Path, lists: dict[str, str], split: str) -> None:
    check(shared / "data" / "voc-mini", split, *official(lists, split))


@pytest.mark.parametrize(("split", "count"), [("trainval", 5011), ("test", 4952)])
def test_all_images_of_the_official_lists(
    shared: Path, lists: dict[str, str], tmp_path: Path, split: str, count: int
) -> None:
    identifiers, marks = official(lists, split)
    assert len(identifiers) == count
    objects = json.loads(gzip.decompress((shared / "data" / "labels" / "voc2007_objects.json.gz").read_bytes()))
    folder = tmp_path / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lists[f"{split}.txt"])
    for identifier in identifiers:
        # The pictures need only be there: targets come from the annotations.
        (folder / "JPEGImages" / f"{identifier}.jpg").touch()
        described = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult></object>"
            for name, *_, difficult in objects[identifier]
        )
        (folder / "Annotations" / f"{identifier}.xml").write_text(f"<annotation>{described}</annotation>")
    check(folder, split, identifiers, marks)
