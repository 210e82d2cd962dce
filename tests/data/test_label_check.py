"""Tests of the look at the labels before training."""

from pathlib import Path

import pytest
import torch

from pvlr.core.labels import LabelSet
from pvlr.data.dataset import LabelledImages
from pvlr.data.label_check import check_labels


def made(name: str, labels: tuple[str, ...], rows: list[list[int]], paths: list[Path] | None = None) -> LabelledImages:
    """A split whose rows list the labels each picture has."""
    target = torch.zeros(len(rows), len(labels))
    for row, present in enumerate(rows):
        target[row, present] = 1.0
    paths = [Path(f"{name}{row}.jpg") for row in range(len(rows))] if paths is None else paths
    identifiers = [str(path) for path in paths]
    return LabelledImages(name=name, labels=LabelSet(labels), paths=paths, identifiers=identifiers, target=target)


def test_positives_are_counted_by_label_and_split() -> None:
    labels = ("sea", "tree")
    found = check_labels({"train": made("a", labels, [[0], [0, 1]]), "test": made("b", labels, [[1]])})
    assert [line.split() for line in found.table.splitlines()] == [
        ["label", "train", "test"],
        ["sea", "2", "0"],
        ["tree", "1", "1"],
    ]
    assert found.problems == ("labels without a positive in test: 'sea'",)


def test_unknown_labels_are_no_positives() -> None:
    data = made("a", ("sea",), [[0], [0]])
    data = data.with_known(torch.tensor([[True], [False]]), "half")
    assert check_labels({"train": data}).table.split() == ["label", "train", "sea", "1"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cat", "cat"), ("red car", "red_car"), ("red car", "redcar"), ("dog", "dogs"), ("T-Shirt", "t shirt")],
)
def test_names_of_one_thing_are_found(one: str, other: str) -> None:
    found = check_labels({"train": made("a", (one, "zebra", other), [[0, 1, 2]])})
    (problem,) = found.problems
    assert "differ in case, space, underscore or a plural alone" in problem
    assert repr(one) in problem
    assert repr(other) in problem


@pytest.mark.parametrize("labels", [("glass", "glas"), ("bus", "bu"), ("gas", "ga"), ("cat", "car"), ("1s", "1")])
def test_other_names_are_not(labels: tuple[str, str]) -> None:
    assert check_labels({"train": made("a", labels, [[0, 1]])}).problems == ()


@pytest.mark.parametrize("separator", [", ", ";", "|", " / "])
def test_labels_that_are_several_are_found(separator: str) -> None:
    labels = (f"red{separator}green", "red", f"blue{separator}red")
    (problem,) = check_labels({"train": made("a", labels, [[0, 1, 2]])}).problems
    assert f"joined by {separator.strip()!r}" in problem
    assert repr(labels[0]) in problem


def test_a_separator_in_a_name_alone_is_no_problem() -> None:
    assert check_labels({"train": made("a", ("Paris, Texas", "AC/DC"), [[0, 1]])}).problems == ()


def test_the_same_picture_in_two_splits_is_found_by_content(tmp_path: Path) -> None:
    files = {"a.jpg": b"one", "b.jpg": b"two", "copy.jpg": b"one", "c.jpg": b"six"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    train = made("a", ("x",), [[0], [0]], [tmp_path / "a.jpg", tmp_path / "b.jpg"])
    test = made("b", ("x",), [[0], [0]], [tmp_path / "copy.jpg", tmp_path / "c.jpg"])
    (problem,) = check_labels({"train": train, "test": test}).problems
    assert problem.startswith("pictures of the same content in two splits: ")
    assert "a.jpg (train) and " in problem
    assert "copy.jpg (test)" in problem
    assert "b.jpg" not in problem


def test_long_lists_are_cut() -> None:
    labels = tuple(f"label {number:03}" for number in range(100))
    found = check_labels({"train": made("a", labels, [list(range(50))])})
    assert len(found.table.splitlines()) == 42
    assert found.table.splitlines()[-1] == "and 60 labels with more positives"
    assert found.problems == (
        "labels without a positive in train: 'label 050', 'label 051', 'label 052', 'label 053', 'label 054' and 45 "
        "more",
    )
