"""Reader of Pascal VOC: pictures and labels from its folders, and their download."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.archives import unpack
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import Entry, require_files
from pvlr.data.readers.exports import treat_unused
from pvlr.data.readers.voc_annotation import DIFFICULT, PRESENT, Annotation, parse_annotation, read_annotation
from pvlr.data.readers.voc_layout import (
    Pictures,
    VOCRules,
    all_annotations,
    candidate,
    find_folder,
    read_list,
    read_own_labels,
)

__all__ = ["VOC_LABELS", "Difficult", "VOCRules", "obtain_voc", "read_annotation", "read_voc"]

VOC_LABELS = LabelSet(
    (
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    readable={"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"},
)
"""The 20 labels, by the names that the files use."""

Difficult = Literal["unknown", "A", "B", "C"]

ABSENT = -1
OFFICIAL = VOCRules()
FIND = "set find_labels to true for the labels that are in the annotations, or labels to a list"
DROPPED = "set unused to 'keep', which keeps labels that no training picture has"
GIVEN = "labels has to name it, and unseen can leave it out after that"
YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")


def read_voc(
    root: str | os.PathLike[str],
    *,
    year: str = "2007",
    split: str | None = "trainval",
    labels: LabelSet | None = None,
    difficult: Difficult = "unknown",
    rules: VOCRules = OFFICIAL,
    transform: Transform | None = None,
    train: bool,
) -> LabelledImages:
    """Read a split of Pascal VOC, or of a data set in its layout.

    Labels are read from `Annotations`, all of them at once. A label whose objects are all `difficult` is treated by
    one of four conventions of the literature:

    | `difficult` | in training | in test |
    |---|---|---|
    | `unknown` | unknown | unknown |
    | `A` | present | unknown |
    | `B` | absent | unknown |
    | `C` | absent | absent |

    Pictures may lie in folders below `JPEGImages` and have any ending: the picture of an annotation has its name, or,
    if there are several or none, the one in its `<filename>`.

    Args:
        root: the folder that holds `VOCdevkit`, or `VOCdevkit` itself, or `VOC<year>`, or one that holds `Annotations`
            and `JPEGImages` without a year.
        year: names the folder `VOC<year>`.
        split: names the list `ImageSets/Main/<split>.txt`; None: all annotations, without a list.
        labels: order of the targets' columns; None: that of `labels.json` (as written by `LabelSet.to_json`) or of
            CVAT's `labelmap.txt` beside `Annotations` if either exists, else `VOC_LABELS`.
        difficult: convention for labels whose objects are all difficult.
        rules: folders and rules for exports of labelling tools. `unused` and `find_labels` are for the labels of the
            files, not for `labels`.
        transform: transform of the pictures, see `LabelledImages`.
        train: whether the training column of the conventions applies, or the test column.

    Returns:
        the pictures, named without extension.

    Raises:
        DataError: naming the file or folder that is missing or broken.

    Example:
        >>> from pvlr.data.scenes.dataset import ScenesConfig, write_scenes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_scenes(folder, ScenesConfig(train=2, val=1, test=1))
        ...     data = read_voc(folder, split="trainval", train=True)
        ...     sample = data[2]
        >>> len(data), len(data.labels), sample.target.shape, sample.index
        (3, 20, torch.Size([20]), 2)
    """
    if difficult not in ("unknown", "A", "B", "C"):
        raise DataError(f"difficult: expected 'unknown', 'A', 'B' or 'C', got {difficult!r}")
    folder = find_folder(Path(root), year, rules, listed=split is not None)
    home, pictures = folder / rules.annotation_folder, Pictures(folder / rules.picture_folder)
    identifiers = all_annotations(home) if split is None else read_list(folder, split, rules)
    described = [home / f"{name}.xml" for name in identifiers]
    _require_all(identifiers, described, home, "the annotation")
    found = {path: parse_annotation(path) for path in described}
    paths = [pictures.find(name, item.filename) for name, item in zip(identifiers, found.values(), strict=True)]
    _require_all(identifiers, paths, pictures.folder, "the picture")
    if labels is None:
        labels, way, note = _labels(folder, found, rules)
    else:
        way, note = DROPPED if rules.unused == "drop" else GIVEN, ""
    target, known = _targets(_states(found, labels, way), difficult, train)
    return LabelledImages(
        name=" ".join(part for part in (folder.name or folder.resolve().name, split) if part),
        labels=labels,
        paths=paths,
        identifiers=identifiers,
        target=target,
        known=known,
        note=f"difficult: {difficult}" + (f", {note}" if note else ""),
        transform=transform,
    )


def _require_all(identifiers: Iterable[str], paths: Iterable[Path], home: Path, what: str) -> None:
    pairs = zip(identifiers, paths, strict=True)
    require_files((Entry(f"{name!r}", name, source, ()) for name, source in pairs), home, what)


def _labels(folder: Path, found: Mapping[Path, Annotation], rules: VOCRules) -> tuple[LabelSet, str, str]:
    """Return the labels of the files, the options that give others, and a note on unused labels."""
    used = {name for item in found.values() for name in item.states}
    own = None if rules.find_labels else read_own_labels(folder)
    if rules.find_labels:
        home = folder / rules.annotation_folder
        others = (home / f"{name}.xml" for name in all_annotations(home))
        names = used.union(*(parse_annotation(path).states for path in others if path not in found))
        if not names:
            raise DataError(f"{home}: expected at least one label, found none")
        labels, place, way = LabelSet(tuple(sorted(names))), str(home), GIVEN
    elif own is not None:
        labels, place, way = own[0], str(folder / own[1]), f"{own[1]} has to name it, else {FIND}"
    else:
        labels, place, way = VOC_LABELS, str(folder), FIND
    kept, note = treat_unused(place, labels.names, used, rules.unused)
    if labels is VOC_LABELS and rules.unused == "keep":  # A part of Pascal VOC may lack a few of its labels.
        note = ""
    return labels.select(kept), way, note


def _states(found: Mapping[Path, Annotation], labels: LabelSet, way: str) -> Int8[Tensor, "n c"]:
    states = torch.full((len(found), len(labels)), ABSENT, dtype=torch.int8)
    for row, (path, item) in enumerate(found.items()):
        for name, state in item.states.items():
            try:
                states[row, labels.index(name)] = state
            except LabelError as err:
                raise DataError(f"{path}: {err}; {way}") from None
    return states


def obtain_voc(root: str | os.PathLike[str], year: str = "2007", how: Literal["never", "download"] = "never") -> None:
    """Download Pascal VOC below `root` if requested and absent; it appears whole or not at all.

    Args:
        root: the folder that will hold `VOCdevkit/VOC<year>`.
        year: 2007 (trainval and test) or 2008 to 2012 (trainval; the test labels were never published).
        how: "never" leaves the error of missing files to `read_voc`; "download" downloads with `torchvision`.

    Raises:
        DataError: in three lines: the data and the reason, the source, and how to use a folder instead; or if the year
            is none of those.
    """
    if how not in ("never", "download"):
        raise DataError(f"how: expected 'never' or 'download', got {how!r}")
    root = Path(root)
    if how == "never" or candidate(root, year, OFFICIAL) is not None:
        return
    if year not in YEARS:
        raise DataError(f"year: expected one to download of {', '.join(YEARS)}, got {year!r}")
    try:
        from torchvision.datasets.utils import download_url
        from torchvision.datasets.voc import DATASET_YEAR_DICT

        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".voc-", dir=root) as name:
            partial = Path(name)
            for part in ("2007", "2007-test") if year == "2007" else (year,):
                archive = DATASET_YEAR_DICT[part]
                download_url(archive["url"], name, archive["filename"], archive["md5"])
                unpack(partial / archive["filename"], partial / "unpacked")
                (partial / archive["filename"]).unlink()
            found = next((partial / "unpacked").glob(f"**/VOC{year}"), None)
            if found is None:
                raise FileNotFoundError(f"the archive holds no folder VOC{year}")
            target = root / "VOCdevkit" / f"VOC{year}"
            target.parent.mkdir(exist_ok=True)
            found.rename(target)
    except Exception as err:
        # The network, the host, a checksum, the disk: each library raises its own errors.
        reason = " ".join(str(err).split()) or type(err).__name__
        raise DataError(
            f"{root}: expected to obtain Pascal VOC {year}, but {reason}",
            "It was asked for through torchvision.datasets.utils.download_url, and its checksum checked.",
            f"If you have it elsewhere, name the folder that holds VOCdevkit/VOC{year}: --data.root FOLDER",
        ) from err


def _targets(
    states: Int8[Tensor, "n c"], difficult: Difficult, train: bool
) -> tuple[Float[Tensor, "n c"], Bool[Tensor, "n c"]]:
    present, hard = states == PRESENT, states == DIFFICULT
    if difficult == "A" and train:
        return (present | hard).float(), torch.ones_like(hard)
    absent = difficult == "C" or (difficult == "B" and train)
    return present.float(), torch.ones_like(hard) if absent else ~hard
