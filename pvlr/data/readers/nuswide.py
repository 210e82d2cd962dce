"""Reader of NUS-WIDE in its three usual splits, whose results must not be compared with each other."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import Entry, assemble, inside, read_text, require_files, shown
from pvlr.data.readers.lines import MAX_TABLE_BYTES, csv_records

__all__ = ["NUSWIDE_COUNTS", "NUSWIDE_LABELS", "NUSWideLists", "read_nuswide"]

NUSWIDE_LABELS = LabelSet(
    (
        "airport", "animal", "beach", "bear", "birds", "boats", "book", "bridge", "buildings", "cars", "castle", "cat",
        "cityscape", "clouds", "computer", "coral", "cow", "dancing", "dog", "earthquake", "elk", "fire", "fish",
        "flags", "flowers", "food", "fox", "frost", "garden", "glacier", "grass", "harbor", "horses", "house", "lake",
        "leaf", "map", "military", "moon", "mountain", "nighttime", "ocean", "person", "plane", "plants", "police",
        "protest", "railroad", "rainbow", "reflection", "road", "rocks", "running", "sand", "sign", "sky", "snow",
        "soccer", "sports", "statue", "street", "sun", "sunset", "surf", "swimmers", "tattoo", "temple", "tiger",
        "tower", "town", "toy", "train", "tree", "valley", "vehicle", "water", "waterfall", "wedding", "whales",
        "window", "zebra",
    )
)  # fmt: skip
"""The 81 concepts, in their alphabetical order."""

NUSWideLists = Literal["official", "labelled", "asl"]

NUSWIDE_COUNTS: Mapping[tuple[str, str], int] = {
    ("official", "train"): 161_789,
    ("official", "test"): 107_859,
    ("labelled", "train"): 125_449,
    ("labelled", "test"): 83_898,
    ("asl", "train"): 119_103,
    ("asl", "test"): 50_720,
}
"""Number of pictures of every published split, by lists and split."""

TEXT = r"""(?:'([^'"\\]+)'|"([^'"\\]+)")"""
LIST = re.compile(rf"\[\s*(?:{TEXT}\s*(?:,\s*{TEXT}\s*)*)?\]")
NOTES = {
    "official": "official lists, with the images without a label",
    "labelled": "official lists, without the images without a label",
    "asl": "list of the ASL authors",
}


def read_nuswide(
    root: str | os.PathLike[str],
    *,
    split: str = "train",
    lists: NUSWideLists = "labelled",
    images: str | os.PathLike[str] | None = None,
    labels: LabelSet | None = None,
    check_files: bool = True,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read a split of NUS-WIDE.

    | ``lists`` | content | train | test |
    |---|---|---|---|
    | ``official`` | the official lists | 161,789 | 107,859 |
    | ``labelled`` | the same, without pictures without a label | 125,449 | 83,898 |
    | ``asl`` | the list of the authors of the asymmetric loss | 119,103 | 50,720 |

    The official lists are ``ImageList/TrainImagelist.txt``, one path per line with ``/`` or ``\\`` between folders, and
    ``Groundtruth/TrainTestLabels/Labels_airport_Train.txt``, 0 or 1 per line, one file for each of the 81 concepts;
    ``Test`` accordingly. The other is ``nus_wid_data.csv`` with the columns ``filepath``, ``label`` (such as
    ``"['sky', 'water']"``) and ``split_name``, which is ``train`` or, for the test split, ``val``.

    The summary states which lists were read, and the published number of pictures if theirs differs.

    Args:
        root: Folder of these files.
        split: ``train`` or ``test``.
        lists: One of the table above.
        images: The folder to which the lists' paths are appended; None: ``root/Flickr`` for the official lists, and
            ``root`` for that of the ASL authors.
        labels: The 81 concepts in any order; None: `NUSWIDE_LABELS`.
        check_files: Check that every picture exists. Otherwise a missing one is found when its sample is read; for
            statistics of labels, and for slow disks.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures in the order of the list, named as there, with ``/`` between folders.

    Raises:
        DataError: naming the file, the line and the defect; or the picture that is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "nus_wid_data.csv").write_text(
        ...         "filepath,label,split_name\\n"
        ...         "images/1.jpg,\\"['sky', 'water']\\",train\\n"
        ...         "images/2.jpg,['cat'],val\\n"
        ...     )
        ...     data = read_nuswide(folder, split="test", lists="asl", check_files=False)
        >>> data.identifiers, data.target[0, NUSWIDE_LABELS.index("cat")].item()
        (('images/2.jpg',), 1.0)
        >>> data.summary()
        'NUS-WIDE test: 1 images, 81 labels, 1.00 positives per image, 0 unknown labels (list of the ASL authors, where
        50,720 images were published)'
    """
    if split not in ("train", "test"):
        raise DataError(f"split: expected 'train' or 'test', got {split!r}")
    if lists not in NOTES:
        raise DataError(f"lists: expected 'official', 'labelled' or 'asl', got {lists!r}")
    labels = NUSWIDE_LABELS if labels is None else labels
    if set(labels) != set(NUSWIDE_LABELS):
        odd = sorted(set(labels) ^ set(NUSWIDE_LABELS))
        raise DataError(f"labels: expected the 81 concepts in any order, found {odd[0]!r} in one of the two alone")
    root = Path(root)
    folder = Path(images) if images is not None else root if lists == "asl" else root / "Flickr"
    if lists == "asl":
        entries = _read_asl(root / "nus_wid_data.csv", folder, split)
    else:
        entries = _read_official(root, folder, split, labels, keep_unlabelled=lists == "official")
    if check_files:
        require_files(entries, folder)
    published = NUSWIDE_COUNTS[lists, split]
    note = NOTES[lists] if len(entries) == published else f"{NOTES[lists]}, where {published:,} images were published"
    return assemble(f"NUS-WIDE {split}", entries, labels, note=note, transform=transform)


def _read_official(root: Path, images: Path, split: str, labels: LabelSet, *, keep_unlabelled: bool) -> list[Entry]:
    part = split.capitalize()
    path = root / "ImageList" / f"{part}Imagelist.txt"
    entries: list[Entry] = []
    for line, text in enumerate(_lines(path, "a list of pictures"), start=1):
        place = f"{path}: line {line}"
        # The lists were written on Windows: actor\0001_2124494179.jpg
        name, source = inside(images, text.replace("\\", "/"), place)
        entries.append(Entry(place, name, source, []))
    target = torch.zeros(len(entries), len(labels), dtype=torch.bool)
    for column, label in enumerate(labels):
        file = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{label}_{part}.txt"
        target[:, column] = _read_marks(file, path, len(entries))
    columns = torch.split(target.nonzero()[:, 1], target.sum(1).tolist())
    return [
        entry._replace(present=present.tolist())
        for entry, present in zip(entries, columns, strict=True)
        if keep_unlabelled or len(present)
    ]


def _read_marks(path: Path, pictures: Path, count: int) -> Bool[Tensor, " n"]:
    marks = _lines(path, "a list of 0 and 1")
    if len(marks) != count:
        raise DataError(f"{path}: expected a line for each of the {count:,} of {pictures.name}, found {len(marks):,}")
    if not {"0", "1"}.issuperset(marks):
        line = next(line for line, mark in enumerate(marks, start=1) if mark not in ("0", "1"))
        raise DataError(f"{path}: line {line}: expected 0 or 1, found {shown(marks[line - 1])}")
    return torch.tensor([mark == "1" for mark in marks])


def _lines(path: Path, what: str) -> list[str]:
    text = read_text(path, what, MAX_TABLE_BYTES).rstrip()
    if not text:
        raise DataError(f"{path}: expected {what}, found an empty file")
    return [line.strip() for line in text.split("\n")]


def _read_asl(path: Path, images: Path, split: str) -> list[Entry]:
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for place, fields in csv_records(path, ("filepath", "label", "split_name")):
        part = fields["split_name"]
        if part not in ("train", "val"):
            raise DataError(f"{place}: expected 'split_name' to be 'train' or 'val', found {shown(part)}")
        name, source = inside(images, fields["filepath"], place)
        if name in places:
            # Also across the splits: a picture in both would be used in training and in test.
            raise DataError(f"{place}: expected every picture once, found {name!r} again, after {places[name]}")
        places[name] = place
        if part == ("train" if split == "train" else "val"):
            entries.append(Entry(place, name, source, _names(place, fields["label"])))
    return entries


def _names(place: str, text: str) -> list[str]:
    """Parse the names of a list as printed by Python, by a pattern and without evaluation."""
    if not LIST.fullmatch(text.strip()):
        raise DataError(f"{place}: expected 'label' to be a list such as ['sky', 'water'], found {shown(text)}")
    return [single or double for single, double in re.findall(TEXT, text)]
