"""Reader of Pascal VOC: pictures and labels from its folders, and their download."""

import math
import os
import re
import tempfile
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.archives import unpack
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import NOTHING, Entry, kind_at, read_text, require_files, require_name, shown
from pvlr.data.readers.lines import parse_json

__all__ = ["VOC_LABELS", "Difficult", "obtain_voc", "read_annotation", "read_voc"]

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

MAX_XML_BYTES, MAX_LIST_BYTES = 1_000_000, 100_000_000
LISTED = re.compile(r"\s*(\S+)(?:[ \t]+(?:-1|0|1))?\s*")
"""A line of a list: a picture, and in the lists of a class, its mark."""
PRESENT, DIFFICULT, ABSENT = 1, 0, -1
YEARS = ("2007", "2008", "2009", "2010", "2011", "2012")


def read_voc(
    root: str | os.PathLike[str],
    *,
    year: str = "2007",
    split: str = "trainval",
    labels: LabelSet | None = None,
    difficult: Difficult = "unknown",
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

    Args:
        root: the folder that holds `VOCdevkit`, or `VOCdevkit` itself, or `VOC<year>`.
        year: names the folder `VOC<year>`.
        split: names the list `ImageSets/Main/<split>.txt`.
        labels: order of the targets' columns; None: that of `VOC<year>/labels.json` (as written by
            `LabelSet.to_json`) if it exists, else `VOC_LABELS`.
        difficult: convention for labels whose objects are all difficult.
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
    folder = _find(Path(root), year)
    labels = labels if labels is not None else _read_labels(folder)
    identifiers = _read_split(folder, split)
    pictures, annotations = folder / "JPEGImages", folder / "Annotations"
    paths = [pictures / f"{name}.jpg" for name in identifiers]
    described = [annotations / f"{name}.xml" for name in identifiers]
    for sources, home, what in ((paths, pictures, "the picture"), (described, annotations, "the annotation")):
        entries = (Entry(f"{name!r}", name, source, ()) for name, source in zip(identifiers, sources, strict=True))
        require_files(entries, home, what)
    states = torch.full((len(identifiers), len(labels)), ABSENT, dtype=torch.int8)
    for row, annotation in enumerate(described):
        for name, state in read_annotation(annotation).items():
            try:
                states[row, labels.index(name)] = state
            except LabelError as err:
                raise DataError(f"{annotation}: {err}") from None
    target, known = _targets(states, difficult, train)
    return LabelledImages(
        name=f"{folder.name} {split}",
        labels=labels,
        paths=paths,
        identifiers=identifiers,
        target=target,
        known=known,
        note=f"difficult: {difficult}",
        transform=transform,
    )


def read_annotation(path: Path) -> dict[str, int]:
    """Return the labels in an annotation file: 1 if any object is not difficult, 0 if all are.

    Files with a document type or entities are refused: they can make a parser read other files or fill the memory.
    Boxes are checked if given, and then discarded.

    Raises:
        DataError: naming the file and its defect.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "1.xml")
        ...     _ = path.write_text("<annotation><object><name>cat</name></object></annotation>")
        ...     read_annotation(path)
        {'cat': 1}
    """
    text = read_text(path, "an annotation", MAX_XML_BYTES)
    for forbidden in ("<!DOCTYPE", "<!ENTITY"):
        if forbidden in text:
            raise DataError(f"{path}: expected an annotation without document type and entities, found {forbidden}")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as err:
        raise DataError(f"{path}: expected well-formed XML, but {err}") from None
    if tree.tag != "annotation":
        raise DataError(f"{path}: expected the element <annotation>, found {shown(tree.tag)}")
    states: dict[str, int] = {}
    size = _only(str(path), tree, "size")
    for item in tree.iterfind("object"):
        name = _text(str(path), item, "name")
        mark = _text(str(path), item, "difficult") or "0"
        if not name:
            raise DataError(f"{path}: expected every <object> to have a <name>, found one without")
        require_name(str(path), "a label", name)
        if mark not in ("0", "1"):
            raise DataError(f"{path}: expected <difficult> of {name!r} to be 0 or 1, found {shown(mark)}")
        for box in item.iterfind("bndbox"):
            _require_box(f"{path}: {name!r}", box, size)
        states[name] = max(states.get(name, DIFFICULT), PRESENT if mark == "0" else DIFFICULT)
    return states


def _require_box(place: str, box: ElementTree.Element, size: ElementTree.Element | None) -> None:
    for low, high, side in (("xmin", "xmax", "width"), ("ymin", "ymax", "height")):
        first, last = _number(place, box, low), _number(place, box, high)
        if not 0 <= first <= last:
            raise DataError(f"{place}: expected 0 <= <{low}> <= <{high}>, found {first:g} and {last:g}")
        end = 0.0 if size is None else _number(place, size, side)
        if 0 < end < first:  # A size of 0 means unknown.
            raise DataError(f"{place}: expected <{low}> within the picture's <{side}> of {end:g}, found {first:g}")


def _number(place: str, item: ElementTree.Element, key: str) -> float:
    text = _text(place, item, key)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: expected <{key}> to be a finite number, found {shown(text)}")
    return number


def _only(place: str, item: ElementTree.Element, key: str) -> ElementTree.Element | None:
    found = item.findall(key)
    if len(found) > 1:  # One would be read, and the others ignored.
        raise DataError(f"{place}: expected <{key}> once in <{item.tag}>, found it {len(found):,} times")
    return found[0] if found else None


def _text(place: str, item: ElementTree.Element, key: str) -> str:
    found = _only(place, item, key)
    return "" if found is None else (found.text or "").strip()


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
    if how == "never" or _candidate(root, year) is not None:
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


def _candidate(root: Path, year: str) -> Path | None:
    name = f"VOC{year}"
    places = [root / "VOCdevkit" / name, root / name]
    if root.name == name:
        places.append(root)
    return next((place for place in places if kind_at(place, f"a folder {name}") == "a folder"), None)


def _find(root: Path, year: str) -> Path:
    folder = _candidate(root, year)
    if folder is None:
        raise DataError(f"{root}: expected a folder that holds VOCdevkit/VOC{year}, found none")
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        if kind_at(folder / part, f"the folder {part}") != "a folder":
            raise DataError(f"{folder}: expected the folder {part} in it, found none")
    return folder


def _read_labels(folder: Path) -> LabelSet:
    path = folder / "labels.json"
    if kind_at(path, "a label set") == NOTHING:
        return VOC_LABELS
    try:
        return LabelSet.from_json(parse_json(str(path), read_text(path, "a label set", MAX_XML_BYTES)))
    except LabelError as err:
        raise DataError(f"{path}: expected a label set, but {err}") from None


def _read_split(folder: Path, split: str) -> tuple[str, ...]:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if kind_at(path, f"the list of the split {split!r}") == NOTHING:
        # Lists per class are named <class>_<split>; the others are the splits.
        there = sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem)
        found = ", ".join(there)[:300] or "no lists"
        raise DataError(f"{path}: expected the list of the split {split!r}, found {found}")
    text = read_text(path, "a list of pictures", MAX_LIST_BYTES)
    seen: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        listed = LISTED.fullmatch(line)
        if listed is None:
            # The part of a name before a space may be the name of another picture.
            raise DataError(f"{place}: expected a name without spaces, alone or with -1, 0 or 1, found {shown(line)}")
        identifier = require_name(place, "a picture", listed[1])
        if "/" in identifier or "\\" in identifier:
            raise DataError(f"{place}: expected names of pictures without folders, found {identifier!r}")
        if identifier in seen:
            raise DataError(f"{place}: expected every picture once, found {identifier!r} twice")
        seen[identifier] = None
    if not seen:
        raise DataError(f"{path}: expected at least one picture, found an empty list")
    return tuple(seen)


def _targets(
    states: Int8[Tensor, "n c"], difficult: Difficult, train: bool
) -> tuple[Float[Tensor, "n c"], Bool[Tensor, "n c"]]:
    present, hard = states == PRESENT, states == DIFFICULT
    if difficult == "A" and train:
        return (present | hard).float(), torch.ones_like(hard)
    absent = difficult == "C" or (difficult == "B" and train)
    return present.float(), torch.ones_like(hard) if absent else ~hard
