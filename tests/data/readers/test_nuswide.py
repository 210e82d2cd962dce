import ast
import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers import nuswide
from pvlr.data.readers.nuswide import NUSWIDE_COUNTS, NUSWIDE_LABELS, read_nuswide

Labelled = Mapping[str, Sequence[str]]
"""Path as in the official lists, and what the picture shows."""

TRAIN: Labelled = {"actor\\0001_1.jpg": ["person"], "sky\\0001_2.jpg": [], "sky\\0002_3.jpg": ["sky", "airport"]}
TEST: Labelled = {"zoo\\0001_4.jpg": ["zebra"], "zoo\\0002_5.jpg": []}


def write_official(root: Path, train: Labelled = TRAIN, test: Labelled = TEST, *, end: str = "\n") -> None:
    marks = root / "Groundtruth" / "TrainTestLabels"
    for folder in (root / "ImageList", marks):
        folder.mkdir(parents=True, exist_ok=True)
    for split, images in (("Train", train), ("Test", test)):
        (root / "ImageList" / f"{split}Imagelist.txt").write_bytes("".join(name + end for name in images).encode())
        sets = [set(found) for found in images.values()]
        for label in NUSWIDE_LABELS:
            text = "".join(("1" if label in found else "0") + end for found in sets)
            (marks / f"Labels_{label}_{split}.txt").write_bytes(text.encode())


def write_asl(root: Path, train: Labelled, val: Labelled) -> None:
    with (root / "nus_wid_data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "label", "split_name"])
        for split, images in (("train", train), ("val", val)):
            writer.writerows([name, str(list(found)), split] for name, found in images.items())


def touch(root: Path, *sets: Labelled) -> None:
    for images in sets:
        for name in images:
            file = root / name.replace("\\", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def present(data: LabelledImages) -> dict[str, set[str]]:
    rows = zip(data.identifiers, data.target.tolist(), strict=True)
    return {key: {name for name, mark in zip(data.labels, row, strict=True) if mark} for key, row in rows}


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
def test_the_official_lists(tmp_path: Path, end: str) -> None:
    write_official(tmp_path, end=end)
    touch(tmp_path / "Flickr", TRAIN, TEST)
    train = read_nuswide(tmp_path, lists="official")
    assert list(present(train).items()) == [
        ("actor/0001_1.jpg", {"person"}),
        ("sky/0001_2.jpg", set()),
        ("sky/0002_3.jpg", {"airport", "sky"}),
    ]
    assert train.paths[0] == tmp_path / "Flickr" / "actor" / "0001_1.jpg"
    assert train.labels == NUSWIDE_LABELS
    assert bool(train.known.all())
    assert train.summary() == (
        "NUS-WIDE train: 3 images, 81 labels, 1.00 positives per image, 0 unknown labels "
        "(official lists, with the images without a label, where 161,789 images were published)"
    )
    test = read_nuswide(tmp_path, split="test")
    assert present(test) == {"zoo/0001_4.jpg": {"zebra"}}
    assert test.summary() == (
        "NUS-WIDE test: 1 images, 81 labels, 1.00 positives per image, 0 unknown labels "
        "(official lists, without the images without a label, where 83,898 images were published)"
    )


def test_the_list_of_the_asl_authors(tmp_path: Path) -> None:
    train = {"images/1.jpg": ["sky", "water"], "images/2.jpg": []}
    write_asl(tmp_path, train, {"images/3.jpg": ["cat"]})
    touch(tmp_path, train, {"images/3.jpg": []})
    data = read_nuswide(tmp_path, lists="asl")
    assert present(data) == {"images/1.jpg": {"sky", "water"}, "images/2.jpg": set()}
    assert data.paths[0] == tmp_path / "images" / "1.jpg"
    assert data.note == "list of the ASL authors, where 119,103 images were published"
    assert present(read_nuswide(tmp_path, lists="asl", split="test")) == {"images/3.jpg": {"cat"}}


def test_a_whole_split_says_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_official(tmp_path)
    monkeypatch.setitem(NUSWIDE_COUNTS, ("official", "test"), 2)
    data = read_nuswide(tmp_path, split="test", lists="official", check_files=False)
    assert data.note == "official lists, with the images without a label"


def test_labels_in_another_order_and_folders_elsewhere(tmp_path: Path) -> None:
    write_official(tmp_path / "lists")
    touch(tmp_path / "pictures", TRAIN)
    labels = LabelSet(tuple(reversed(NUSWIDE_LABELS.names)), readable={"plane": "aeroplane"})
    data = read_nuswide(tmp_path / "lists", images=tmp_path / "pictures", labels=labels)
    assert data.labels is labels
    assert present(data) == {"actor/0001_1.jpg": {"person"}, "sky/0002_3.jpg": {"airport", "sky"}}
    with pytest.raises(DataError, match="labels: expected the 81 concepts in any order, found 'airport' in one of"):
        read_nuswide(tmp_path / "lists", labels=LabelSet(NUSWIDE_LABELS.names[1:]))


@pytest.mark.usefixtures("unchecked")
def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split: expected 'train' or 'test', got 'val'"):
        read_nuswide(tmp_path, split="val")
    with pytest.raises(DataError, match="lists: expected 'official', 'labelled' or 'asl', got 'mine'"):
        read_nuswide(tmp_path, lists="mine")


def test_missing_pictures(tmp_path: Path) -> None:
    write_official(tmp_path)
    touch(tmp_path / "Flickr", {"actor\\0001_1.jpg": []})
    with pytest.raises(DataError) as caught:
        read_nuswide(tmp_path)
    file, line = tmp_path / "Flickr" / "sky" / "0002_3.jpg", f"{tmp_path / 'ImageList' / 'TrainImagelist.txt'}: line 3"
    assert str(caught.value) == f"{file}: expected the picture of {line}, found no such file"
    assert len(read_nuswide(tmp_path, check_files=False)) == 2


IMAGES, SKY = "ImageList/TrainImagelist.txt", "Groundtruth/TrainTestLabels/Labels_sky_Train.txt"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (IMAGES, None, "expected a list of pictures, but No such file or directory"),
        (IMAGES, b"\r\n \n", "expected a list of pictures, found an empty file"),
        (IMAGES, b"a.jpg\n\xff\nb.jpg", "line 2: expected a list of pictures in UTF-8, found other bytes"),
        (IMAGES, b"a.jpg\n\nb.jpg", "line 2: expected the name of a picture without white space around it, found ''"),
        (IMAGES, b"a.jpg\n..\\b.jpg\nc.jpg", "line 2: expected a picture inside its folder, found '../b.jpg'"),
        (IMAGES, b"\\a.jpg\nb.jpg\nc.jpg", "line 1: expected a picture inside its folder, found '/a.jpg'"),
        (
            IMAGES,
            b"a\\b.jpg\na/b.jpg\nc.jpg",
            "line 2: expected every picture once, found 'a/b.jpg' again, after {line 1}",
        ),
        (SKY, None, "expected a list of 0 and 1, but No such file or directory"),
        (SKY, b"", "expected a list of 0 and 1, found an empty file"),
        (SKY, b"0\n1\n", "expected a line for each of the 3 of TrainImagelist.txt, found 2"),
        (SKY, b"0\n1\n0\n1\n", "expected a line for each of the 3 of TrainImagelist.txt, found 4"),
        (SKY, b"0\n2\n1\n", "line 2: expected 0 or 1, found '2'"),
        (SKY, b"0\n\n1\n", "line 2: expected 0 or 1, found ''"),
        (SKY, b"0\n1\n0\0", "line 3: expected a list of 0 and 1, found a NUL byte"),
    ],
)
def test_official_lists_that_are_refused(tmp_path: Path, file: str, text: bytes | None, message: str) -> None:
    write_official(tmp_path)
    path = tmp_path / file
    path.unlink() if text is None else path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        read_nuswide(tmp_path, lists="official", check_files=False)
    assert str(caught.value) == f"{path}: " + message.replace("{line 1}", f"{path}: line 1")


LIST = "line 2: expected 'label' to be a list such as ['sky', 'water'], found "


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1.jpg,['sky'],test", "line 2: expected 'split_name' to be 'train' or 'val', found 'test'"),
        ("1.jpg,['sky']", "line 2: expected 3 values, one per column, found 2"),
        ("1.jpg,sky,train", LIST + "'sky'"),
        ("1.jpg,[sky],train", LIST + "'[sky]'"),
        ("1.jpg,[''],train", LIST + "\"['']\""),
        ("1.jpg,\"['sky' 'water']\",train", LIST + "\"['sky' 'water']\""),
        ("1.jpg,\"['sky',]\",train", LIST + "\"['sky',]\""),
        ("1.jpg,__import__('os').getcwd(),train", LIST + "\"__import__('os').getcwd()\""),
        ("1.jpg,['skyy'],train", "line 2: unknown label 'skyy', the nearest known one is 'sky'"),
        ("1.jpg,\"['sky', 'sky']\",train", "line 2: expected every label once, found 'sky' twice"),
        ("../1.jpg,['sky'],train", "line 2: expected a picture inside its folder, found '../1.jpg'"),
        (
            "1.jpg,['sky'],train\n1.jpg,['sky'],val",
            "line 3: expected every picture once, found '1.jpg' again, after {line 2}",
        ),
        ("1.jpg,\"['sky'],train", "line 2: expected comma-separated values, but unexpected end of data"),
    ],
)
def test_a_list_of_the_asl_authors_that_is_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "nus_wid_data.csv"
    path.write_text(f"filepath,label,split_name\n{row}\n")
    with pytest.raises(DataError) as caught:
        read_nuswide(tmp_path, lists="asl", check_files=False)
    assert str(caught.value) == f"{path}: " + message.replace("{line 2}", f"{path}: line 2")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_official(tmp_path)
    monkeypatch.setattr(nuswide, "MAX_TABLE_BYTES", 10)
    with pytest.raises(DataError, match=r"TrainImagelist\.txt: expected a list of pictures of at most 10 bytes"):
        read_nuswide(tmp_path)


@given(
    found=st.lists(st.lists(st.sampled_from(NUSWIDE_LABELS.names), max_size=4, unique=True), min_size=1, max_size=5),
    spaces=st.sampled_from(["", " ", "  "]),
    quote=st.sampled_from("'\""),
)
def test_lists_are_read_as_python_reads_them(
    found: list[list[str]], spaces: str, quote: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("asl")
    texts = [
        f"[{spaces}{f'{spaces},{spaces}'.join(quote + name + quote for name in names)}{spaces}]" for names in found
    ]
    assert [ast.literal_eval(text) for text in texts] == found
    with (root / "nus_wid_data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split_name", "label", "filepath", "more"])
        writer.writerows(["train", text, f"{number}.jpg", ""] for number, text in enumerate(texts))
    data = read_nuswide(root, lists="asl", check_files=False)
    assert list(present(data).values()) == [set(names) for names in found]


def real(shared: Path) -> list[dict[str, str]]:
    with gzip.open(shared / "data" / "nuswide" / "labels81.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def test_the_labels_are_the_official_ones(shared: Path) -> None:
    names = (shared / "data" / "nuswide" / "concepts81.txt").read_text().split()
    assert NUSWIDE_LABELS.names == tuple(names)
    assert len(names) == 81
    assert sorted(names) == names


@pytest.mark.usefixtures("unchecked")
def test_real_labels_in_every_layout(shared: Path, tmp_path: Path) -> None:
    rows = real(shared)
    assert len(rows) == 73_118
    named = {
        row["file"]: [NUSWIDE_LABELS.names[int(number)] for number in row["concept_indices"].split()] for row in rows
    }
    test = {row["file"] for row in rows if row["in_test_50720"] == "1"}
    parts = {
        "test": {file: found for file, found in named.items() if file in test},
        "train": {file: found for file, found in named.items() if file not in test},
    }
    folders = {split: {f"actor\\{file}": found for file, found in part.items()} for split, part in parts.items()}
    write_official(tmp_path, folders["train"], folders["test"], end="\r\n")
    write_asl(tmp_path, parts["train"], parts["test"])
    for split, count, labelled in (("test", 50_720, 50_720), ("train", 22_398, 22_398 - 3_316)):
        marks = torch.zeros(count, 81)
        for row, found in enumerate(parts[split].values()):
            for name in found:
                marks[row, NUSWIDE_LABELS.index(name)] = 1
        for lists in ("official", "asl", "labelled"):
            data = read_nuswide(tmp_path, split=split, lists=lists, check_files=False)  # type: ignore[arg-type]
            kept = marks if lists != "labelled" else marks[marks.any(1)]
            assert len(data) == (labelled if lists == "labelled" else count)
            assert torch.equal(data.target, kept)
            assert ("published" in data.summary()) == ((lists, split) != ("asl", "test"))


def test_real_pictures(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data" / "nuswide" / "images").iterdir())
    found: Labelled = {f"images/{file.name}": ["sky"] for file in files}
    write_asl(tmp_path, found, {})
    data = read_nuswide(tmp_path, lists="asl", images=shared / "data" / "nuswide")
    assert [data[index].image.ndim for index in range(3)] == [3, 3, 3]
    assert len(data) == 3
