"""Reader of COCO: labels of pictures from the boxes of an ``instances`` file, or of any file in that format."""

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import (
    NOTHING,
    Entry,
    assemble,
    kind_at,
    read_text,
    repeated,
    require_files,
    require_name,
    shown,
    shown_keys,
)
from pvlr.data.readers.exports import Unused, inside_any, require_rules, treat_unused

__all__ = ["COCO_LABELS", "MAX_JSON_BYTES", "COCORules", "NoPictureError", "SameNames", "Strays", "read_coco"]

SameNames = Literal["refuse", "merge"]
Strays = Literal["refuse", "drop"]
Id = int | str

COCO_LABELS = LabelSet(
    (
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
        "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
        "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
        "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
        "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
        "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
        "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
        "toothbrush",
    )
)  # fmt: skip
"""The 80 labels, in the order of their category ids (1 to 90, ten of which are not used)."""

MAX_JSON_BYTES = 2_000_000_000
"""Largest annotation file; that of train2014 has about 330 MB."""

WHOLE = re.compile(r"-?[1-9][0-9]{0,17}|0")
"""A text that is the same id as an integer."""


@dataclass(frozen=True, kw_only=True)
class COCORules:
    """Rules for what other tools write and COCO's own files do not have.

    Args:
        unused: Treatment of categories without an annotation, such as the name of the project in exports of Roboflow:
            ``keep``, ``drop`` or ``refuse``.
        same_names: Treatment of categories of one name: ``refuse``, or ``merge`` them into one label.
        strays: Treatment of annotations of an image that the file does not list: ``refuse`` or ``drop``.

    Raises:
        DataError: naming a rule that is none of its choices.

    Example:
        >>> COCORules(unused="drop").same_names
        'refuse'
    """

    unused: Unused = "keep"
    same_names: SameNames = "refuse"
    strays: Strays = "refuse"

    def __post_init__(self) -> None:
        require_rules(self)


class NoPictureError(DataError):
    """Error of pictures that are not in the folder given for them.

    Args:
        message: The sentence.
        name: Name of the first picture.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


def read_coco(
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: LabelSet | None = None,
    keep_unlabelled: bool = False,
    check_files: bool = True,
    rules: COCORules = COCORules(),
    transform: Transform | None = None,
) -> LabelledImages:
    r"""Read an annotation file of COCO, or of a data set in its format; each file is a split.

    A label is present if at least one object of it is annotated, including crowds, boxes without area (COCO has a few)
    and annotations of the whole picture, whose ``bbox`` is missing, null or empty. The rest of the file is ignored:
    outlines, licences, numbers of the annotations.

    Of train2014 and val2014, 82,081 and 40,137 pictures have a label, of 82,783 and 40,504. Most publications evaluate
    on those with a label.

    Args:
        images: The folder of the pictures, to which each ``file_name`` is appended.
        annotations: An ``instances_*.json`` of at most `MAX_JSON_BYTES`: an object with the lists ``images`` (``id``,
            ``file_name``), ``categories`` (``id``, ``name``) and ``annotations`` (``image_id``, ``category_id``;
            ``bbox`` and ``iscrowd`` are checked if given). An id is an integer or a text; ``"7"`` and 7 are the same. A
            ``\`` in ``file_name`` separates folders, unless there is a file of that very name, which is refused.
        name: Name of the data set; None: that of the annotation file without its extension.
        labels: The columns of the target: names of categories in the file, in any order. They must include every
            category that an object has. None: all of the file's categories, by id.
        keep_unlabelled: Keep the pictures without a label. Either way the summary states their number.
        check_files: Check that every picture in the result exists. Otherwise a missing one is found when its sample is
            read; for statistics of labels, and for slow disks.
        rules: Rules for exports of labelling tools. ``unused`` is for the file's own labels, not for ``labels``.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures in the order of the file, named by their ``file_name``.

    Raises:
        DataError: naming the file and its defect, or the picture that is missing.

    Example:
        >>> import tempfile
        >>> content = {
        ...     "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        ...     "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        ...     "annotations": [{"image_id": 8, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 0}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for image in ("a.jpg", "b.jpg"):
        ...         Path(folder, image).touch()
        ...     path = Path(folder, "instances_mine.json")
        ...     _ = path.write_text(json.dumps(content))
        ...     data = read_coco(folder, path)
        ...     used = read_coco(folder, path, rules=COCORules(unused="drop"))
        >>> data.labels.names, data.identifiers, data.target.tolist(), used.labels.names
        (('cat', 'dog'), ('b.jpg',), [[0.0, 1.0]], ('dog',))
        >>> data.note
        "1 without a label left out, 1 label without an annotation kept: 'cat'"
    """
    path = Path(annotations)
    content = _load(path)
    categories = _categories(path, content)
    files = _files(path, content, Path(images))
    marks = _marks(path, content, files, categories, rules)
    labels, unused = _labels(path, categories, marks.used, labels, rules)
    entries = [
        Entry(f"{path}: image {shown(number)}", file, source, sorted(marks.present[number]))
        for number, (file, source) in files.items()
        if keep_unlabelled or marks.present[number]
    ]
    _require_listed(entries, labels, rules)
    if check_files:
        _require_pictures(entries, Path(images))
    without = sum(not names for names in marks.present.values())
    strays = f"{marks.strays:,} annotations of other images left out" if marks.strays else ""
    notes = (f"{without:,} without a label {'kept' if keep_unlabelled else 'left out'}", unused, strays)
    note = ", ".join(note for note in notes if note)
    return assemble(name or path.stem, entries, labels, note=note, transform=transform)


def _load(path: Path) -> dict[str, Any]:
    text = read_text(path, "annotations", MAX_JSON_BYTES)

    def without_outline(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        item = dict(pairs)
        if len(item) != len(pairs):
            twice = shown(repeated(key for key, _ in pairs))
            raise DataError(f"{path}: expected every key of an object once, found {twice} twice")
        # Outlines are nine tenths of COCO's files: each is discarded as soon as it is parsed.
        item.pop("segmentation", None)
        return item

    try:
        content = json.loads(text, object_pairs_hook=without_outline)
    except DataError:
        raise
    except RecursionError:
        raise DataError(f"{path}: expected annotations as JSON, found far too many brackets within brackets") from None
    except ValueError as err:
        raise DataError(f"{path}: expected annotations as JSON, but {err}") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: expected an object with 'images', 'categories', 'annotations', found {shown(content)}"
        )
    for key in ("images", "categories", "annotations"):
        if key not in content:
            raise DataError(f"{path}: expected the key {key!r}, found {shown_keys(content)}")
        if not isinstance(content[key], list):
            raise DataError(f"{path}: expected {key!r} to be a list, found {shown(content[key])}")
        for number, item in enumerate(content[key]):
            if not isinstance(item, dict):
                raise DataError(f"{path}: {key}[{number}]: expected an object, found {shown(item)}")
    return content


def _identity(place: str, item: dict[str, Any], key: str) -> Id:
    value = _field(place, item, key)
    if isinstance(value, str) and value:
        # Tools that write ids as texts do not always do so in all three lists.
        return int(value) if WHOLE.fullmatch(value) else value
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{place}: expected {key!r} to be an integer or a text, found {shown(value)}")
    return value


def _field(place: str, item: dict[str, Any], key: str) -> object:
    if key not in item:
        raise DataError(f"{place}: expected the key {key!r}, found {shown_keys(item)}")
    value: object = item[key]
    return value


def _categories(path: Path, content: dict[str, Any]) -> dict[Id, str]:
    categories: dict[Id, str] = {}
    for position, item in enumerate(content["categories"]):
        place = f"{path}: categories[{position}]"
        number = _identity(place, item, "id")
        if number in categories:
            raise DataError(f"{place}: expected every category once, found the id {shown(number)} again")
        categories[number] = require_name(place, "a category", _field(place, item, "name"))
    _label_set(path, dict.fromkeys(categories.values()))
    return dict(sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _labels(
    path: Path, categories: dict[Id, str], used: set[Id], labels: LabelSet | None, rules: COCORules
) -> tuple[LabelSet, str]:
    names = {categories[number] for number in used}
    if rules.unused == "drop":
        # Of two categories of one name, Roboflow's project often is the one that is not annotated.
        unique = _unique(path, {n: name for n, name in categories.items() if n in used or name not in names}, rules)
    else:
        unique = _unique(path, categories, rules)
    if labels is None:
        kept, note = treat_unused(f"{path}: categories", unique, names, rules.unused)
        return _label_set(path, kept), note
    known = _label_set(path, unique)
    for name in labels:  # A label that is no category cannot be marked as absent.
        try:
            known.index(name)
        except LabelError as err:
            raise DataError(f"{path}: categories: {err}") from None
    return labels, ""


def _label_set(path: Path, names: Iterable[str]) -> LabelSet:
    try:
        return LabelSet(tuple(names))
    except LabelError as err:
        raise DataError(f"{path}: categories: {err}") from None


def _unique(path: Path, categories: dict[Id, str], rules: COCORules) -> tuple[str, ...]:
    numbers: dict[str, Id] = {}
    for number, name in categories.items():
        if name in numbers and rules.same_names == "refuse":
            raise DataError(
                f"{path}: categories: expected one category of a name, found {shown(name)} with the ids "
                f"{shown(numbers[name])} and {shown(number)}; set same_names to 'merge' to make one label of them"
            )
        numbers.setdefault(name, number)
    return tuple(numbers)


def _require_listed(entries: Iterable[Entry], labels: LabelSet, rules: COCORules) -> None:
    for entry in entries:
        for name in entry.present:
            try:
                labels.index(str(name))
            except LabelError as err:
                way = (
                    "set unused to 'keep', which keeps labels that no training picture has"
                    if rules.unused == "drop"
                    else "labels has to name it, and unseen can leave it out after that"
                )
                raise DataError(f"{entry.place}: {err}; {way}") from None


def _require_pictures(entries: Sequence[Entry], folder: Path) -> None:
    if entries and isinstance(first := entries[0].source, Path):
        what = f"the picture of {entries[0].place}"
        if kind_at(first, what) == NOTHING:
            raise NoPictureError(f"{first}: expected {what}, found {NOTHING}", entries[0].name)
    require_files(entries, folder)


def _files(path: Path, content: dict[str, Any], folder: Path) -> dict[Id, tuple[str, Path]]:
    files: dict[Id, tuple[str, Path]] = {}
    seen: set[str] = set()
    for position, item in enumerate(content["images"]):
        place = f"{path}: images[{position}]"
        number = _identity(place, item, "id")
        if number in files:
            raise DataError(f"{place}: expected every image once, found the id {shown(number)} again")
        file, source = inside_any(folder, _field(place, item, "file_name"), place)
        if file in seen:
            raise DataError(f"{place}: expected every file once, found {file!r} again")
        seen.add(file)
        files[number] = file, source
    return files


class _Marks(NamedTuple):
    present: dict[Id, set[str]]
    used: set[Id]
    strays: int


def _marks(
    path: Path, content: dict[str, Any], files: Collection[Id], categories: dict[Id, str], rules: COCORules
) -> _Marks:
    present: dict[Id, set[str]] = {number: set() for number in files}
    used: set[Id] = set()
    strays = 0
    for position, item in enumerate(content["annotations"]):
        place = f"{path}: annotations[{position}]"
        image, category = _identity(place, item, "image_id"), _identity(place, item, "category_id")
        if image not in present and rules.strays == "refuse":
            raise DataError(
                f"{place}: expected the id of one of the images, found {shown(image)}; "
                f"set strays to 'drop' to leave such annotations out"
            )
        if category not in categories:
            raise DataError(f"{place}: expected the id of one of the categories, found {shown(category)}")
        if item.get("bbox") not in (None, []):  # An annotation of the whole picture has none.
            _require_box(place, item["bbox"])
        if item.get("iscrowd", 0) not in (0, 1):
            raise DataError(f"{place}: expected 'iscrowd' to be 0 or 1, found {shown(item['iscrowd'])}")
        if image not in present:
            strays += 1
            continue
        present[image].add(categories[category])
        used.add(category)
    return _Marks(present, used, strays)


def _require_box(place: str, box: object) -> None:
    if (
        not isinstance(box, list)
        or len(box) != 4
        or any(isinstance(number, bool) or not isinstance(number, int | float) for number in box)
        or any(isinstance(number, float) and not math.isfinite(number) for number in box)
    ):
        found = json.dumps(box) if isinstance(box, list) and len(box) <= 4 else shown(box)
        raise DataError(f"{place}: expected 'bbox' to be four finite numbers, found {found[:60]}")
    if box[2] < 0 or box[3] < 0:
        raise DataError(f"{place}: expected 'bbox' to have no negative size, found {box[2]} x {box[3]}"[:300])
