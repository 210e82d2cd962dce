"""Counts of the readers beside the official lists: the command below prints the table.

``python tests/data/readers/official_counts.py SHARED``

``SHARED`` is the folder of real data, see CONTRIBUTING.md. Its lists are complete where its pictures are not:
annotation files are written anew from them, in the data sets' own layouts, for the readers to read.
"""

import argparse
import csv
import gzip
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pvlr.data.readers.coco import COCO_LABELS, read_coco
from pvlr.data.readers.nuswide import NUSWIDE_LABELS, read_nuswide
from pvlr.data.readers.voc import VOC_LABELS, Difficult, read_voc

CONVENTIONS: tuple[Difficult, ...] = ("unknown", "A", "B", "C")


class Count(NamedTuple):
    """A row of the table."""

    what: str
    found: int
    official: int


def voc_lists(shared: Path) -> dict[str, str]:
    """File name under ``ImageSets/Main`` to its text: all of VOC 2007."""
    with tarfile.open(shared / "data" / "labels" / "VOC2007_ImageSets_Main_full.tar.gz") as archive:
        files = [member for member in archive if member.isfile()]
        return {Path(member.name).name: archive.extractfile(member).read().decode() for member in files}  # type: ignore[union-attr]


def voc_marks(lists: Mapping[str, str], split: str) -> tuple[list[str], Tensor]:
    """Images of a split and their marks, ``n c``: 1 present, 0 only difficult objects, -1 absent."""
    identifiers = lists[f"{split}.txt"].split()
    columns = []
    for name in VOC_LABELS:
        marks = dict(line.split() for line in lists[f"{name}_{split}.txt"].splitlines())
        columns.append([int(marks[identifier]) for identifier in identifiers])
    return identifiers, torch.tensor(columns).T


def voc_expected(marks: Tensor, difficult: str, train: bool) -> tuple[Tensor, Tensor]:
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


def voc_tree(shared: Path, folder: Path, lists: Mapping[str, str], split: str) -> Path:
    """All annotations of a split of VOC 2007 by its objects; the pictures are empty files."""
    home = folder / split / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / part).mkdir(parents=True)
    (home / "ImageSets" / "Main" / f"{split}.txt").write_text(lists[f"{split}.txt"])
    objects = json.loads(gzip.decompress((shared / "data" / "labels" / "voc2007_objects.json.gz").read_bytes()))
    for identifier in lists[f"{split}.txt"].split():
        (home / "JPEGImages" / f"{identifier}.jpg").touch()
        described = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult></object>"
            for name, *_, difficult in objects[identifier]
        )
        (home / "Annotations" / f"{identifier}.xml").write_text(f"<annotation>{described}</annotation>")
    return home


def voc_rows(shared: Path, folder: Path) -> Iterator[Count]:
    lists = voc_lists(shared)
    places = {
        "VOC 2007": (("trainval", 5_011), ("test", 4_952)),
        "VOC 2007, the photographs that are there": (
            ("trainval", 1_012),
            ("train", 515),
            ("val", 497),
            ("test", 1_013),
        ),
    }
    for name, splits in places.items():
        for split, images in splits:
            identifiers, marks = voc_marks(lists, split)
            rows = {identifier: row for row, identifier in enumerate(identifiers)}
            there = name != "VOC 2007"
            root = shared / "data" / "voc-mini" if there else voc_tree(shared, folder, lists, split)
            for difficult in CONVENTIONS:
                data = read_voc(root, split=split, difficult=difficult, train=split != "test")
                target, known = voc_expected(marks[[rows[key] for key in data.identifiers]], difficult, split != "test")
                if difficult == "unknown":
                    yield Count(f"{name} {split}: images", len(data), images)
                same = (data.target == target) & (data.known == known)
                yield Count(f"{name} {split}, difficult {difficult}: marks that agree", int(same.sum()), 20 * images)


def coco_rows(shared: Path, folder: Path) -> Iterator[Count]:
    categories = json.loads((shared / "data" / "labels" / "categories.json").read_text())
    column = {item["id"]: COCO_LABELS.index(item["name"]) for item in categories}
    with gzip.open(shared / "data" / "labels" / "coco14_image_labels.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    splits = (
        ("train2014", "coco2014_split", "train2014", 82_081, 82_783),
        ("val2014", "coco2014_split", "val2014", 40_137, 40_504),
        ("train2017", "in_val2017_annotated", "0", 117_266, 118_287),
        ("val2017", "in_val2017_annotated", "1", 4_952, 5_000),
    )
    for split, field, value, labelled, images in splits:
        found = {int(row["image_id"]): row["category_ids"].split() for row in rows if row[field] == value}
        # The lists name labelled pictures alone: as many others are added as there are.
        numbers = [*found, *range(1_000_000, 1_000_000 + images - labelled)]
        content = {
            "images": [{"id": number, "file_name": f"{number:012}.jpg"} for number in numbers],
            "categories": categories,
            "annotations": [
                {"image_id": number, "category_id": int(category)}
                for number, shown in found.items()
                for category in shown
            ],
        }
        path = folder / f"instances_{split}.json"
        path.write_text(json.dumps(content))
        data = read_coco(folder, path, check_files=False, keep_unlabelled=True)
        yield Count(f"COCO {split}: all images", len(data), images)
        yield Count(f"COCO {split}: images with a label", int(data.target.any(1).sum()), labelled)
        expected = torch.zeros(images, 80)
        for row, shown in enumerate(found.values()):
            expected[row, [column[int(category)] for category in shown]] = 1
        yield Count(f"COCO {split}: marks that agree", int((data.target == expected).sum()), 80 * images)
        if split == "val2014":
            kept = read_coco(folder, path, check_files=False)
            yield Count(f"COCO {split}: images read by default", len(kept), labelled)


def nuswide_rows(shared: Path, folder: Path) -> Iterator[Count]:
    with gzip.open(shared / "data" / "nuswide" / "labels81.csv.gz", "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["in_test_50720"] == "1"]
    names: Sequence[str] = NUSWIDE_LABELS.names
    expected = torch.zeros(len(rows), 81)
    with (folder / "nus_wid_data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "label", "split_name"])
        for row, item in enumerate(rows):
            columns = [int(number) for number in item["concept_indices"].split()]
            expected[row, columns] = 1
            writer.writerow([item["file"], str([names[column] for column in columns]), "val"])
    data = read_nuswide(folder, split="test", lists="asl", check_files=False)
    yield Count("NUS-WIDE, list of the ASL authors, test: images", len(data), 50_720)
    yield Count(
        "NUS-WIDE, list of the ASL authors, test: marks that agree",
        int((data.target == expected).sum()),
        81 * 50_720,
    )


SETS = {"VOC": voc_rows, "COCO": coco_rows, "NUS-WIDE": nuswide_rows}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="the folder of real data")
    given = parser.parse_args()
    print("| what | found | official |\n|---|---|---|")
    for rows_of in SETS.values():
        with tempfile.TemporaryDirectory() as name:
            for count in rows_of(cast(Path, given.shared), Path(name)):
                print(f"| {count.what} | {count.found:,} | {count.official:,} |", flush=True)
